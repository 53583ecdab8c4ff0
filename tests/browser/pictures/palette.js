/* Decodes a PNG and gives each pixel one of SIZE colours. */
async ([data, size]) => {
    const bitmap = await createImageBitmap(await (await fetch(`data:image/png;base64,${data}`)).blob());
    const { width, height } = bitmap;
    const context = new OffscreenCanvas(width, height).getContext("2d");
    context.drawImage(bitmap, 0, 0);
    const pixels = context.getImageData(0, 0, width, height).data;
    const exact = new Map();
    for (let n = 0; n < pixels.length; n += 4) {
        const colour = (pixels[n] << 16) | (pixels[n + 1] << 8) | pixels[n + 2];
        exact.set(colour, (exact.get(colour) ?? 0) + 1);
    }
    const coarse = new Map();
    for (const [colour, times] of [...exact].sort((a, b) => b[1] - a[1])) {
        const key = colour & 0xe0e0e0;
        const known = coarse.get(key) ?? { times: 0, first: [] };
        known.times += times;
        if (known.first.length < 6) known.first.push([colour, times]);
        coarse.set(key, known);
    }
    const palette = [...coarse.values()].flatMap(({ first }) => first).sort((a, b) => b[1] - a[1]).slice(0, size).map(([colour]) => colour);
    const nearest = new Map();
    for (const colour of exact.keys()) {
        let best = 0;
        let least = Infinity;
        palette.forEach((other, at) => {
            const far = Math.abs((colour >> 16) - (other >> 16)) + Math.abs(((colour >> 8) & 255) - ((other >> 8) & 255)) + Math.abs((colour & 255) - (other & 255));
            if (far < least) [best, least] = [at, far];
        });
        nearest.set(colour, best);
    }
    const indices = new Uint8Array(width * height);
    for (let n = 0; n < indices.length; n++) indices[n] = nearest.get((pixels[4 * n] << 16) | (pixels[4 * n + 1] << 8) | pixels[4 * n + 2]);
    let text = "";
    for (let n = 0; n < indices.length; n += 32768) text += String.fromCharCode(...indices.subarray(n, n + 32768));
    return { width, height, palette, indices: btoa(text) };
}
