// Loaded before the page is drawn, so that a chosen theme does not flash.
const chosen = (() => {
  try { return localStorage.getItem("mmrr-theme"); } catch { return null; }
})();
if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
