// Pictures of a clip: frames side by side in one file, shown whole or one at a time.

const STEP_MS = 140;

// One frame of a clip that plays while the pointer is over `area` or the focus in it.
function player(row, area = null) {
  const frames = clips.number('strip_frames', row);
  const box = h('div.player');
  if (!frames) {
    box.classList.add('nothing');
    box.append(h('span', {}, 'no pictures'));
    box.title = clips.text('strip_problem', row);
    return box;
  }
  box.style.backgroundImage = `url("strips/${clips.text('strip', row)}")`;
  box.style.backgroundSize = `${frames * 100}% 100%`;
  const middle = frames >> 1;
  const show = (k) => {
    box.style.backgroundPositionX = frames > 1 ? `${(k * 100) / (frames - 1)}%` : '0';
    box.dataset.frame = k;
  };
  show(middle);
  let timer = 0;
  const play = () => {
    if (timer || frames < 2) return;
    let k = 0;
    show(0);
    timer = setInterval(() => { box.isConnected ? show(k = (k + 1) % frames) : stop(); }, STEP_MS);
  };
  const stop = () => { clearInterval(timer); timer = 0; show(middle); };
  box.play = play;
  box.stop = stop;
  box.show = show;
  const target = area ?? box;
  target.addEventListener('pointerenter', play);
  target.addEventListener('pointerleave', stop);
  target.addEventListener('focus', () => { if (target.matches(':focus-visible')) play(); });
  target.addEventListener('blur', stop);
  return box;
}

// All frames of a clip in one row.
function wholeStrip(row) {
  const frames = clips.number('strip_frames', row);
  const box = h('div.strip');
  if (!frames) {
    box.classList.add('nothing');
    box.append(h('span', {}, `no pictures: ${clips.text('strip_problem', row)}`));
    box.title = clips.text('strip_problem', row);
    return box;
  }
  box.style.backgroundImage = `url("strips/${clips.text('strip', row)}")`;
  box.style.aspectRatio = `${frames} / 1`;
  box.style.width = `${(frames * 100) / content.strip_frames}%`;
  return box;
}
