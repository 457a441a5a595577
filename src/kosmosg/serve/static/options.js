// What can be done to one picture of the line, beneath it: its weight, its place, another picture.

/**
 * Return `show(number)`, which opens the options of a picture; -1 closes them.
 *
 * @param panel The element with the controls.
 * @param prompt The PromptLine.
 * @param onReplace Called with a number when another picture is to be chosen.
 */
export function pictureOptions(panel, prompt, onReplace) {
  const find = (name) => panel.querySelector(`[data-do="${name}"]`);
  const weight = panel.querySelector("input");
  const said = panel.querySelector("output");
  let shown = -1;

  const after = {
    left: () => prompt.move(shown, -1),
    right: () => prompt.move(shown, 1),
    swap: () => prompt.swap(shown, (shown + 1) % prompt.prompt.pictures.length),
    replace: () => onReplace(shown),
  };
  for (const [name, act] of Object.entries(after)) {
    find(name).addEventListener("click", () => show(act() ?? shown, { keepFocus: true }));
  }
  find("remove").addEventListener("click", () => {
    const number = shown;
    show(-1);
    prompt.remove(number);
  });
  find("close").addEventListener("click", () => leave());
  weight.addEventListener("input", () => {
    prompt.weigh(shown, weight.valueAsNumber);
    show(shown, { keepFocus: true });
  });
  panel.addEventListener("keydown", (event) => {
    if (event.key === "Escape") leave();
    if (event.key === "Enter" && event.target === weight) event.preventDefault();
  });
  document.addEventListener("pointerdown", (event) => {
    if (!panel.contains(event.target) && !prompt.root.contains(event.target)) show(-1);
  });

  function leave() {
    const number = shown;
    show(-1);
    prompt.focus(number);
  }

  function show(number, { keepFocus = false } = {}) {
    const { pictures } = prompt.prompt;
    const chips = prompt.line.chips();
    shown = pictures[number] ? number : -1;
    panel.hidden = shown < 0;
    chips.forEach((chip, one) => chip.setAttribute("aria-expanded", String(one === shown)));
    if (shown < 0) return;
    const picture = pictures[shown];
    panel.querySelector("b").textContent = picture.name;
    weight.value = picture.weight;
    weight.setAttribute("aria-valuetext", `${picture.weight} times`);
    said.textContent = `×${picture.weight}`;
    find("swap").disabled = pictures.length < 2;
    const box = chips[shown].getBoundingClientRect();
    const origin = panel.offsetParent.getBoundingClientRect();
    const most = panel.offsetParent.clientWidth - panel.offsetWidth;
    panel.style.left = `${Math.max(0, Math.min(most, box.left - origin.left))}px`;
    panel.style.top = `${box.bottom - origin.top + 8}px`;
    if (!keepFocus) weight.focus({ preventScroll: true });
  }
  return show;
}
