// A scrolling grid that holds only the items in sight, however many there are.

class VirtualGrid {
  // make(index) -> element; minWidth and gap in px; height: px, or a function of an item's width.
  constructor({ make, minWidth, height, gap = 10, label, canFocus = false }) {
    Object.assign(this, { make, minWidth, height, gap, canFocus });
    this.count = 0;
    this.current = 0;
    this.items = new Map();
    this.space = h('div.space', { role: canFocus ? 'listbox' : 'list', 'aria-label': label });
    this.element = h('div.scroll', {}, this.space);
    this.element.addEventListener('scroll', () => this.render(), { passive: true });
    new ResizeObserver(() => { if (this.element.clientWidth !== this.seenWidth) this.layOut(); else this.render(); }).observe(this.element);
    if (canFocus) this.space.addEventListener('keydown', (event) => this.move(event));
  }

  setCount(count) {
    this.count = count;
    this.current = 0;
    this.element.scrollTop = 0;
    this.layOut();
  }

  setShape(minWidth, height) {
    Object.assign(this, { minWidth, height });
    this.layOut();
  }

  layOut() {
    const width = this.seenWidth = this.element.clientWidth;
    this.items.clear();
    this.space.replaceChildren();
    if (!width) return;
    this.numColumns = Math.max(1, Math.floor((width + this.gap) / (this.minWidth + this.gap)));
    this.itemWidth = Math.floor((width - (this.numColumns - 1) * this.gap) / this.numColumns);
    this.itemHeight = typeof this.height === 'function' ? this.height(this.itemWidth) : this.height;
    const numLines = Math.ceil(this.count / this.numColumns);
    this.space.style.height = `${Math.max(0, numLines * (this.itemHeight + this.gap) - this.gap)}px`;
    this.render();
  }

  render() {
    if (!this.numColumns || !this.element.clientHeight) return;
    const line = this.itemHeight + this.gap;
    const first = Math.max(0, Math.floor(this.element.scrollTop / line) - 1) * this.numColumns;
    const end = Math.min(this.count, (Math.ceil((this.element.scrollTop + this.element.clientHeight) / line) + 1) * this.numColumns);
    for (const [index, item] of this.items) {
      if ((index < first || index >= end) && !item.contains(document.activeElement)) { item.remove(); this.items.delete(index); }
    }
    for (let index = first; index < end; index++) {
      if (this.items.has(index)) continue;
      const item = this.make(index);
      const left = (index % this.numColumns) * (this.itemWidth + this.gap), top = Math.floor(index / this.numColumns) * line;
      Object.assign(item.style, { transform: `translate(${left}px, ${top}px)`, width: `${this.itemWidth}px`, height: `${this.itemHeight}px` });
      item.dataset.index = index;
      item.setAttribute('role', this.canFocus ? 'option' : 'listitem');
      item.setAttribute('aria-setsize', this.count);
      item.setAttribute('aria-posinset', index + 1);
      if (this.canFocus) item.tabIndex = index === this.current ? 0 : -1;
      this.items.set(index, item);
      this.space.append(item);
    }
  }

  focus(index) {
    this.items.get(this.current)?.setAttribute('tabindex', '-1');
    this.current = Math.min(this.count - 1, Math.max(0, index));
    const line = this.itemHeight + this.gap, top = Math.floor(this.current / this.numColumns) * line;
    const { scrollTop, clientHeight } = this.element;
    if (top < scrollTop) this.element.scrollTop = top;
    else if (top + this.itemHeight > scrollTop + clientHeight) this.element.scrollTop = top + this.itemHeight - clientHeight;
    this.render();
    const item = this.items.get(this.current);
    if (item) { item.tabIndex = 0; item.focus({ preventScroll: true }); }
  }

  move(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const page = Math.max(1, Math.floor(this.element.clientHeight / (this.itemHeight + this.gap))) * this.numColumns;
    const steps = {
      ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.numColumns, ArrowDown: this.numColumns,
      PageUp: -page, PageDown: page, Home: -Infinity, End: Infinity,
    };
    const step = steps[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const from = Number(document.activeElement?.closest('[data-index]')?.dataset.index ?? this.current);
    this.focus(from + step);
  }
}
