/** Lint for the dashboard: what is wrong, not what is a matter of taste. */

import js from "@eslint/js";

const BROWSER = `AbortController AbortSignal Blob BroadcastChannel DOMException Element Event FormData HTMLElement HTMLSelectElement
  KeyboardEvent Path2D TextDecoder TextDecoderStream URL URLSearchParams confirm console devicePixelRatio document fetch history
  innerHeight innerWidth localStorage location matchMedia navigator performance requestAnimationFrame scrollTo
  setInterval clearInterval setTimeout clearTimeout window getComputedStyle queueMicrotask addEventListener`;

export default [
  js.configs.recommended,
  {
    languageOptions: { ecmaVersion: "latest", sourceType: "module", globals: Object.fromEntries(BROWSER.split(/\s+/).map((name) => [name, "readonly"])) },
    rules: {
      eqeqeq: "error",
      "no-unused-vars": ["error", { argsIgnorePattern: "^_", varsIgnorePattern: "^_" }],
      "no-var": "error",
      "prefer-const": "error",
    },
  },
];
