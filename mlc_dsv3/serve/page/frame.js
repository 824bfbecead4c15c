// What stands around the conversation: the list at the left, a panel at the right, the theme.

import { byId } from "./dom.js";
import { preferences } from "./preferences.js";

const PANELS = ["experts", "settings"];
const THEMES = ["system", "light", "dark"];
const NAMES = { system: "System theme", light: "Light theme", dark: "Dark theme" };

const narrow = matchMedia("(max-width: 760px)"); // The list covers the conversation.
const roomy = matchMedia("(min-width: 1180px)"); // A panel has a place of its own.

export class Frame {
  // `panelShown()`, and `redraw()` when colours change.
  constructor(actions) {
    this.actions = actions;
    for (const name of PANELS) byId(`toggle-${name}`).addEventListener("click", () => this.showPanel(byId(name).hidden ? name : "none"));
    byId("toggle-sidebar").addEventListener("click", () => this.showSidebar(!this.sidebarShown));
    byId("close-sidebar").addEventListener("click", () => this.showSidebar(false));
    byId("theme").addEventListener("click", () => this.nextTheme());
    narrow.addEventListener("change", () => this.showSidebar(!narrow.matches, false));
    document.addEventListener("pointerdown", ({ target }) => {
      if (!byId("sidebar").contains(target) && !byId("toggle-sidebar").contains(target)) this.closeSidebarIfNarrow(false);
    });
  }

  begin() {
    this.showTheme();
    this.showSidebar(!narrow.matches, false);
    this.setPanel(roomy.matches ? (preferences.panel ?? "experts") : "none");
  }

  showSidebar(shown, focus = true) {
    this.sidebarShown = shown;
    document.body.classList.toggle("no-sidebar", !shown);
    byId("sidebar").inert = !shown;
    byId("toggle-sidebar").setAttribute("aria-expanded", String(shown));
    if (narrow.matches && focus) (shown ? byId("close-sidebar") : byId("toggle-sidebar")).focus({ preventScroll: true });
  }

  closeSidebarIfNarrow(focus = true) {
    if (narrow.matches && this.sidebarShown) this.showSidebar(false, focus);
  }

  showPanel(name) {
    const before = PANELS.find((other) => !byId(other).hidden);
    if (roomy.matches) preferences.panel = name;
    this.setPanel(name);
    if (name !== "none") byId(name).querySelector("button").focus({ preventScroll: true });
    else if (before !== undefined) byId(`toggle-${before}`).focus();
  }

  setPanel(name) {
    for (const other of PANELS) {
      byId(other).hidden = other !== name;
      byId(`toggle-${other}`).setAttribute("aria-expanded", String(other === name));
    }
    if (name === "experts") this.actions.panelShown();
  }

  // Closes what lies over the conversation. On a wide page nothing does.
  escape() {
    if (narrow.matches && this.sidebarShown) this.showSidebar(false);
    else if (!roomy.matches && PANELS.some((name) => !byId(name).hidden)) this.showPanel("none");
  }

  nextTheme() {
    preferences.theme = THEMES[(THEMES.indexOf(preferences.theme) + 1) % THEMES.length];
    this.showTheme();
    this.actions.redraw();
  }

  showTheme() {
    const { theme } = preferences;
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    byId("theme").lastElementChild.textContent = NAMES[theme];
    byId("theme").title = "Change between the system's, the light and the dark theme";
  }
}
