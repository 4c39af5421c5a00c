// The portal searches as one types. Without this script its form does the same.
"use strict";

(() => {
  const input = document.getElementById("q");
  const form = input && input.form;
  let results = document.getElementById("results");
  if (!form || !results) return;

  const PAUSE_MS = 200;
  const AGAIN_MS = [500, 1000, 2000];
  let timer = 0;
  let underWay = null;
  let failures = 0;

  // What is shown must not stay behind what was typed because of one answer that did not come.
  function tryAgain() {
    clearTimeout(timer);
    if (failures < AGAIN_MS.length) timer = setTimeout(search, AGAIN_MS[failures++]);
  }

  async function search() {
    const url = new URL(form.action);
    const text = input.value.trim();
    if (text) url.searchParams.set("q", text);
    if (underWay) underWay.abort();
    const mine = (underWay = new AbortController());
    try {
      const answer = await fetch(url, {
        headers: { accept: "text/html" },
        redirect: "error",
        signal: mine.signal,
      });
      if (!answer.ok) {
        if (mine === underWay) tryAgain();
        return;
      }
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const found = page.getElementById("results");
      if (!found || mine !== underWay) return;
      // The line that is read out stays the same element: only then is it read out again.
      const said = results.querySelector("[role=status]");
      said.textContent = found.querySelector("[role=status]").textContent;
      found.querySelector("[role=status]").replaceWith(said);
      results.replaceWith(found);
      results = found;
      history.replaceState(null, "", url);
    } catch {
      // In the end the button still searches, and says what is wrong.
      if (mine === underWay) tryAgain();
    }
  }

  input.addEventListener("input", () => {
    clearTimeout(timer);
    failures = 0;
    timer = setTimeout(search, PAUSE_MS);
  });
})();
