"""What happens in the browser without asking the server: counts and colours while a slider moves.

The scripts get models by name; `dspa.app.picks` says which.
"""

from dspa.app.frame import ADDED, DIM, DROPPED, KEPT, REMOVED

# Colours circles and points, moves the lines, writes the counts and the command.
UPDATE = f"""
const i = Math.round(ncc.value), [low, high] = power.value.map(Math.round)
const at = ncc_cuts.data.value, limits = power_cuts.data.value, width = limits.length
if (!(i < at.length && high < width)) return
const least = at[i], lowest = limits[low], highest = limits[high]
const passes = (n, p) => n >= least && p >= lowest && p <= highest

let all = table.data.upto[i * width + high] - table.data.below[i * width + low]
const mine = edits.data
for (let k = 0; k < mine.state.length; k++) {{
  const through = passes(mine.ncc[k], mine.power[k])
  if (mine.state[k] == 3 || (mine.state[k] == 1 && !through)) all += 1
  if (mine.state[k] == 2 && through) all -= 1
}}
const p = points.data
let here = 0
for (let k = 0; k < p.x.length; k++)
  if (p.state[k] == 3 || p.state[k] == 1 || (p.state[k] == 0 && passes(p.ncc[k], p.power[k])))
    here += 1

const number = (n) => n.toLocaleString("en-US")
const total = totals.data.all[0]
counts.text = `<div style="display:flex;gap:34px;line-height:1.2">
<div><span style="font-size:25px;color:{KEPT}">${{number(all)}}</span>
<span style="color:{DIM}">of ${{number(total)}} in all</span></div>
<div><span style="font-size:25px;color:{KEPT}">${{number(here)}}</span>
<span style="color:{DIM}">of ${{number(p.x.length)}} here</span></div>
<div style="color:{DIM};align-self:end">by hand: ${{number(mine.state.length)}}</div></div>`
const raw = calibrate.active ? "" : " --no-calibrate"
const hand = mine.state.length ? " --edits FILE" : ""
const range = `${{+lowest.toPrecision(4)}} ${{+highest.toPrecision(4)}}`
command.text = `dspa inspect-picks ${{job.value}} --min-ncc ${{+least.toFixed(3)}} ` +
  `--power ${{range}}${{raw}}${{hand}}`

// Counts come first; circles and points are drawn once for all moves since they were last drawn.
const paint = () => {{
  const p = points.data, s = cloud.data
  let changed = false
  for (let k = 0; k < p.x.length; k++) {{
    const state = p.state[k], through = passes(p.ncc[k], p.power[k])
    const kept = state == 3 || state == 1 || (state == 0 && through)
    const colour = state == 2 ? "{REMOVED}" : state ? "{ADDED}" : through ? "{KEPT}" : "{DROPPED}"
    const alpha = kept ? 1 : state == 2 ? 0.9 : dropped.active ? 0.55 : 0
    changed ||= p.colour[k] != colour || p.alpha[k] != alpha
    p.colour[k] = colour
    p.alpha[k] = alpha
  }}
  if (changed) points.change.emit()
  for (let k = 0; k < s.ncc.length; k++)
    s.colour[k] = passes(s.ncc[k], s.power[k]) ? "{KEPT}" : "#7d858f"
  cloud.change.emit()
  ncc_line.location = ncc_line_below.location = least
  low_line.location = low_line_below.location = lowest
  high_line.location = high_line_below.location = highest
}}
const waiting = window.dspa_paint
window.dspa_paint = paint
if (!waiting) setTimeout(() => {{
  const last = window.dspa_paint
  window.dspa_paint = null
  last()
}}, 20)
"""

# A box drawn in the scatter sets the sliders: its left, lower and upper edges.
BOX = """
const g = cb_obj.geometry
if (g.type != "rect" || !cb_obj.final) return
const first = (values, limit) => { // first place at or above the limit
  const found = values.findIndex((value) => value >= limit)
  return found < 0 ? values.length - 1 : found
}
const at = Array.from(ncc_cuts.data.value), limits = Array.from(power_cuts.data.value)
const low = first(limits, Math.min(g.y0, g.y1))
const above = first(limits, Math.max(g.y0, g.y1))
ncc.value = first(at, Math.min(g.x0, g.x1))
power.value = [low, Math.max(low, above)]
"""

# A slider's places are numbers of a list; its title shows the list's value.
PLACE = """
const value = cuts.data.value[Math.round(tick)]
return value === undefined ? "" : value < 10 ? value.toFixed(3) : value.toPrecision(4)
"""

# Shows a new micrograph whole, undistorted, in the middle; the same one stays as it was zoomed.
FIT = """
if (!image.data.w.length || !plot.inner_width) return
const size = [image.data.row[0], plot.inner_width, plot.inner_height].join()
if (plot.tags[0] === size) return
plot.tags = [size]
const w = image.data.w[0], h = image.data.h[0]
const scale = Math.max(w / plot.inner_width, h / plot.inner_height)
const x = (plot.inner_width * scale - w) / 2, y = (plot.inner_height * scale - h) / 2
for (const [range, start, end] of [[plot.x_range, -x, w + x], [plot.y_range, h + y, -y]])
  range.setv({start, end, reset_start: start, reset_end: end})
"""

STEP = "number.value = Math.min(number.high, Math.max(1, number.value + (step)))"

# Arrow keys turn the micrographs, unless something else has the keyboard. A slider that was
# dragged gives it back, or the arrows would go on moving the slider.
KEYS = """
if (window.dspa_keys) return
window.dspa_keys = true
const focused = () => {
  let found = document.activeElement
  while (found && found.shadowRoot && found.shadowRoot.activeElement)
    found = found.shadowRoot.activeElement
  return found
}
window.addEventListener("pointerup", () => {
  const found = focused()
  if (found && found.classList.contains("noUi-handle")) found.blur()
})
// A name is typed over the one that stands there.
let fresh = null
window.addEventListener("pointerdown", (event) => {
  const pressed = event.composedPath()[0]
  fresh = pressed === focused() ? null : pressed
})
window.addEventListener("click", (event) => {
  if (event.composedPath()[0] === fresh && fresh.type == "text") fresh.select()
  fresh = null
})
window.addEventListener("keydown", (event) => {
  const found = focused()
  const taken = found && (/^(text|number|select-one)$/.test(found.type) ||
    found.classList.contains("noUi-handle"))
  if (taken && event.key == "Enter") setTimeout(() => found.blur(), 50)
  if (taken || event.altKey || event.metaKey) return
  const turn = (step) => {
    number.value = Math.min(number.high, Math.max(1, number.value + step))
    event.preventDefault()
  }
  if (event.ctrlKey) {
    if (event.key == "z" && !undo.disabled) undo.tags = [performance.now()]
    return
  }
  if (event.key == "ArrowRight" || event.key == "ArrowDown") turn(1)
  else if (event.key == "ArrowLeft" || event.key == "ArrowUp") turn(-1)
  else if (event.key == "e") tool.active = tool.active == 1 ? 0 : 1
  else if (event.key == "d") dropped.active = !dropped.active
})
"""
