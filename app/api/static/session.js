// Exchanges the one-time code in the address for a session, and takes it out of the address.
const code = new URLSearchParams(location.hash.slice(1)).get("code");

if (code) {
  history.replaceState(null, "", location.pathname);
  const answer = await fetch("/session", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ code }),
  });
  document.getElementById("session").textContent = answer.ok
    ? "This browser has a session now."
    : "The code in this address was used already; take a new one from the server's output.";
}
