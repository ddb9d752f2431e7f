-- A scope's levels as one string: what they are, then their values. Read, moved to other limits, written.
--
-- The string is a header (its length in two bytes, then five packed columns: fields, algorithms,
-- capacities, per_minutes, values of each level) and, for the header's layout: the epoch the values are
-- of, the ms the key lives to, and of each level
--
--   bucket       level in ticks, at_ms (-1: nothing was ever taken, it is full under any figures)
--   quota        id, used, held, id before, used, held, 1 when seeded
--   balance      level, held, 1 when seeded
--   concurrency  number of a lease, holds under it, number, holds, ...
--
-- Equal headers mean equal limits, so what a header says is read once. Requests bring the limits that
-- are stored nearly always; then a scope is two reads of its string, and nothing is compared. Where
-- they differ, the string is taken apart level by level and made anew.

local HEAD = '<Hc0'
local FORMATS = {bucket = 'dd', quota = 'sddsddd', balance = 'ddd'}
local SIZES = {bucket = 2, quota = 7, balance = 3}
local UNTOUCHED = -1

local layouts, layouts_kept = {}, 0

-- What a header says: `places` by field, and by place the level's figures and where its values begin.
local function layout_of(header)
  local layout = layouts[header]
  if layout then return layout end
  local names, kinds, capacities, rates, sizes = unpacked(header)
  local places, offsets, format, size = {}, {}, {'<sd'}, 2
  for i = 1, #names do
    places[names[i]], offsets[i] = i, size + 1
    format[i + 1] = FORMATS[kinds[i]] or string.rep('d', sizes[i])
    size = size + sizes[i]
  end
  layout = {
    names = names, kinds = kinds, capacities = capacities, rates = rates, sizes = sizes,
    places = places, offsets = offsets, format = table.concat(format), size = size,
    head = binary(HEAD, #header, header),
  }
  if layouts_kept >= KEPT then
    layouts, layouts_kept = {}, 0
    specs, specs_kept = {}, 0 -- which know layouts
  end
  layouts[header], layouts_kept = layout, layouts_kept + 1
  return layout
end

-- A level that nobody has touched.
local function untouched(name, kind, capacity, rate)
  local cell = {name = name, kind = kind, capacity = 0, rate = 0}
  if kind == 'bucket' then
    cell.capacity, cell.rate = capacity, rate
    cell[1], cell[2] = capacity * TICKS, UNTOUCHED
  elseif kind == 'quota' then
    for at, value in ipairs({'', 0, 0, '', 0, 0, 0}) do cell[at] = value end
  elseif kind == 'balance' then
    for at = 1, 3 do cell[at] = 0 end
  end
  return cell
end

-- Level by level, in order and by field.
local function apart(layout, values)
  local cells = {}
  for i, name in ipairs(layout.names) do
    local cell = {
      name = name, kind = layout.kinds[i], capacity = layout.capacities[i], rate = layout.rates[i],
    }
    for at = 1, layout.sizes[i] do cell[at] = values[layout.offsets[i] + at - 1] end
    cells[i], cells[name] = cell, cell
  end
  return cells
end

local function together(cells, epoch, lives_to)
  local names, kinds, capacities, rates, sizes = {}, {}, {}, {}, {}
  local values = {epoch, lives_to}
  for i, cell in ipairs(cells) do
    names[i], kinds[i] = cell.name, cell.kind
    capacities[i], rates[i], sizes[i] = cell.capacity, cell.rate, #cell
    for at = 1, #cell do values[#values + 1] = cell[at] end
  end
  return layout_of(pack(names, kinds, capacities, rates, sizes)), values
end

-- Of another epoch: rates stand, what others held of a quota before is taken as used, money is unseeded
-- and begins at nothing, and holds are gone.
local function reborn(cells)
  for i, cell in ipairs(cells) do
    local money = string.find(cell.name, ':money', 1, true)
    if cell.kind == 'quota' and not money then
      cell[2], cell[3] = cell[2] + cell[3], 0
      cell[5], cell[6] = cell[5] + cell[6], 0
      cell[7] = 0
    elseif cell.kind ~= 'bucket' then
      cells[i] = untouched(cell.name, cell.kind)
      cells[cell.name] = cells[i]
    end
  end
end

-- Go on under a bucket's new figures: what flowed in before did so at the old rate, a surplus is cut.
local function adopt(cell, capacity, rate)
  local level, at_ms = cell[1], cell[2]
  if at_ms == UNTOUCHED then
    level = capacity * TICKS
  else
    if now_ms > at_ms then
      level = math.min(cell.capacity * TICKS, level + (now_ms - at_ms) * cell.rate)
    end
    level, at_ms = math.min(level, capacity * TICKS), now_ms
  end
  cell.capacity, cell.rate, cell[1], cell[2] = capacity, rate, level, at_ms
end

-- Where the rows of scope `s` of a spec stand in a layout: row -> first value, and `places`: row -> place;
-- false where one is not there or, with `figures`, has others.
local function fitting(layout, spec, s, figures)
  local found, places = {}, {}
  for n = (spec.ends[s - 1] or 0) + 1, spec.ends[s] do
    local i = layout.places[spec.names[n]]
    if not i or layout.kinds[i] ~= spec.kinds[n] then return false end
    if figures and spec.kinds[n] == 'bucket'
      and (layout.capacities[i] ~= spec.capacities[n] or layout.rates[i] ~= spec.rates[n]) then
      return false
    end
    found[n], places[n] = layout.offsets[i], i
  end
  found.places = places
  return found
end

-- Cells that have all rows of scope `s`; whether a level that was there had to change for it.
local function fitted(cells, spec, s, figures)
  local changed = false
  for n = (spec.ends[s - 1] or 0) + 1, spec.ends[s] do
    local name, kind, capacity, rate = spec.names[n], spec.kinds[n], spec.capacities[n], spec.rates[n]
    local cell = cells[name]
    if not cell then
      cell = untouched(name, kind, capacity, rate)
      cells[#cells + 1], cells[name] = cell, cell
    elseif figures and kind == 'bucket' and (cell.capacity ~= capacity or cell.rate ~= rate) then
      changed = changed or cell[2] ~= UNTOUCHED
      adopt(cell, capacity, rate)
    end
  end
  return changed
end

-- What stands open of a spec's scopes, by their number, filled again by every step: values, layout,
-- where the rows stand, the layout as it was read, how much of the string is head and how long it is,
-- and whether it must be written.
local opened, laid, placed, was_laid, heads, lengths, changed = {}, {}, {}, {}, {}, {}, {}

-- Scope `s` of a spec, from its string or false. With `figures` its buckets go on under the spec's.
local function open(s, raw, spec, epoch, figures)
  local fits = (figures and spec.judged or spec.moved)[s]
  local layout, values
  changed[s] = false
  if raw then
    local header, from = numbers(HEAD, raw)
    layout = layouts[header] or layout_of(header)
    values, was_laid[s], heads[s], lengths[s] =
      {numbers(layout.format, raw, from)}, layout, from - 1, #raw
    if values[1] ~= epoch then
      local cells = apart(layout, values)
      reborn(cells)
      layout, values = together(cells, epoch, values[2])
    end
  else
    local blank = spec.blank[s]
    if not blank then
      local cells = {}
      fitted(cells, spec, s)
      blank = {together(cells, epoch, 0)}
      spec.blank[s] = blank
    end
    layout, values, was_laid[s] = blank[1], {epoch, spread(blank[2], 2)}, nil
  end
  local found = fits[layout]
  if found == nil then
    found = fitting(layout, spec, s, figures)
    fits[layout] = found
  end
  if not found then
    local cells = apart(layout, values)
    changed[s] = fitted(cells, spec, s, figures)
    layout, values = together(cells, epoch, values[2])
    found = fits[layout]
    if not found then
      found = fitting(layout, spec, s, figures)
      fits[layout] = found
    end
  end
  opened[s], laid[s], placed[s] = values, layout, found
  return values, found, layout
end

-- A spec's scopes as they are found.
local function fetch(spec)
  local keys = {}
  for s, scope in ipairs(spec.scopes) do keys[s] = prefix .. 's:' .. scope end
  if #keys == 0 then return keys end
  return call('MGET', spread(keys))
end

-- Write a scope that stands open, and let its key live long enough: only the values, where that will do.
local function close(s, key, keep_ms)
  local values, layout = opened[s], laid[s]
  if keep_ms > LONGEST_MS then keep_ms = LONGEST_MS end
  local lives = values[2] >= now_ms + keep_ms
  if not lives then
    keep_ms = keep_ms + SLACK_MS
    values[2] = now_ms + keep_ms
  end
  local body = binary(layout.format, spread(values, 1, layout.size))
  if not lives then
    call('SET', key, layout.head .. body, 'PX', keep_ms)
  elseif layout == was_laid[s] and heads[s] + #body == lengths[s] then
    call('SETRANGE', key, heads[s], body)
  else
    call('SET', key, layout.head .. body, 'KEEPTTL')
  end
end

-- One scope level by level, of this epoch: its cells and the ms its key lives to.
local function cells_of(raw, epoch)
  if not raw then return {}, 0 end
  local header, from = numbers(HEAD, raw)
  local layout = layout_of(header)
  local values = {numbers(layout.format, raw, from)}
  local cells = apart(layout, values)
  if values[1] ~= epoch then reborn(cells) end
  return cells, values[2]
end

local function cell_of(cells, name, kind)
  local cell = cells[name]
  if not cell then
    cell = untouched(name, kind, 0, 0)
    cells[#cells + 1], cells[name] = cell, cell
  end
  return cell
end

-- Write a scope that holds money, which lives for ever.
local function write_cells(key, cells, epoch, lives_to)
  was_laid[1] = nil
  laid[1], opened[1] = together(cells, epoch, lives_to)
  close(1, key, LONGEST_MS)
end
