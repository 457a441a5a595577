// What can be done to one picture of the line, beneath it: its weight, its place, another picture.

/**
 * Return `show(number, by)`, which opens the options of a picture (-1 closes them), and `follow`,
 * which brings them up to date after the prompt has changed.
 *
 * @param panel The element with the controls.
 * @param prompt The PromptLine.
 * @param onReplace Called with a number when another picture is to be chosen.
 */
export function pictureOptions(panel, prompt, onReplace) {
  const find = (name) => panel.querySelector(`[data-do="${name}"]`);
  const weight = panel.querySelector("input");
  let key; // of the picture whose options these are

  const number = () => prompt.prompt.pictures.findIndex((picture) => picture.key === key);
  const does = {
    left: () => prompt.move(number(), -1),
    right: () => prompt.move(number(), 1),
    swap: () => prompt.swap(number(), (number() + 1) % prompt.prompt.pictures.length),
    replace: () => onReplace(number()),
    remove: () => prompt.remove(number()),
    close: () => leave(),
  };
  for (const [name, act] of Object.entries(does)) find(name).addEventListener("click", act);
  weight.addEventListener("input", () => prompt.weigh(number(), weight.valueAsNumber));
  panel.addEventListener("keydown", (event) => {
    if (event.key === "Escape") leave();
    if (event.key === "Enter" && event.target === weight) event.preventDefault();
  });
  document.addEventListener("pointerdown", (event) => {
    if (!panel.contains(event.target) && !prompt.root.contains(event.target)) show(-1);
  });

  function leave() {
    const shown = number();
    show(-1);
    prompt.focus(shown);
  }

  function show(chosen, by) {
    key = prompt.prompt.pictures[chosen]?.key;
    follow();
    // By mouse the keyboard stays on the picture, so that Delete removes it.
    if (by === "keyboard") weight.focus({ preventScroll: true });
  }

  function follow() {
    const shown = key === undefined ? -1 : number();
    const chips = prompt.line.chips();
    chips.forEach((chip, one) => chip.setAttribute("aria-expanded", String(one === shown)));
    panel.hidden = shown < 0;
    if (panel.hidden) return;
    const { pictures } = prompt.prompt;
    const picture = pictures[shown];
    panel.querySelector("b").textContent = picture.name;
    weight.value = picture.weight;
    weight.setAttribute("aria-valuetext", `${picture.weight} times`);
    panel.querySelector("output").textContent = `×${picture.weight}`;
    find("swap").disabled = pictures.length < 2;
    const box = chips[shown].getBoundingClientRect();
    const origin = panel.offsetParent.getBoundingClientRect();
    const most = panel.offsetParent.clientWidth - panel.offsetWidth;
    panel.style.left = `${Math.max(0, Math.min(most, box.left - origin.left))}px`;
    panel.style.top = `${box.bottom - origin.top + 8}px`;
  }
  return { show, follow };
}
