-- Levels moved from what was reserved to what was true: shared by settle, release, expire and seed.

-- What is taken of money that is not seeded yet is put into `early`.
local function note_early(early, scope, name, id, amount)
  if not early then return end
  local at = #early
  early[at + 1], early[at + 2], early[at + 3], early[at + 4] = scope, name, id, amount
end

-- An untouched bucket is full under any figures: it goes on under the spec's.
local function refit(s, spec)
  local values = opened[s]
  local cells = apart(laid[s], values)
  for n = (spec.ends[s - 1] or 0) + 1, spec.ends[s] do
    local cell = cells[spec.names[n]]
    if cell.kind == 'bucket' and cell[2] == UNTOUCHED then
      adopt(cell, spec.capacities[n], spec.rates[n])
    end
  end
  laid[s], opened[s] = together(cells, values[1], values[2])
  placed[s] = fitting(laid[s], spec, s)
  return opened[s], placed[s], laid[s]
end

-- All scopes of a spec, from what was found of them. All is read before anything is written: a cluster
-- that is moving the slot refuses a key that it does not have any more, and what was written by then
-- would stay.
local function open_all(spec, found, base, epoch)
  for s = 1, #spec.scopes do open(s, found[base + s], spec, epoch, false) end
end

-- Row by row, of scopes that stand open: `reserved` units are no longer held, `actual` units are used.
-- `how` as the reservation has it: rows that stay (or nil), the number of its holds, periods charged.
-- `only` (nil = all) names the algorithm to move. Buckets move under the figures they have.
local function move(spec, reserved, actual, how, only, early)
  local ends, kinds, names, dims = spec.ends, spec.kinds, spec.names, spec.dims
  local capacities, rates = spec.capacities, spec.rates
  local stay, number, ids = how[1], how[2], how[3]
  local from, quotas = 1, 0
  for s = 1, #ends do
    local to, keep_ms, values, places, layout = ends[s], 0, opened[s], placed[s], laid[s]
    for n = from, to do
      local kind, was, is, at, lasts_ms = kinds[n], reserved[n], actual[n], places[n], 0
      if kind == 'quota' then quotas = quotas + 1 end
      if (stay and stay[n]) or (only and kind ~= only) then
        lasts_ms = 0
      elseif kind == 'bucket' then
        if was ~= is then
          local place = places.places[n]
          if values[at + 1] == UNTOUCHED
            and (layout.capacities[place] ~= capacities[n] or layout.rates[place] ~= rates[n]) then
            values, places, layout = refit(s, spec)
            at, place = places[n], places.places[n]
          end
          local level, rate, full = values[at], layout.rates[place], layout.capacities[place] * TICKS
          local elapsed = now_ms - values[at + 1]
          if elapsed > 0 then
            level = level + elapsed * rate
            if level > full then level = full end
          end
          level = level + (was - is) * TICKS
          if level > full then level = full end
          values[at], values[at + 1] = level, now_ms
          lasts_ms = rate > 0 and reset_ms(full - level, rate) + MARGIN_MS or LONGEST_MS
        end
      elseif kind == 'concurrency' then
        if number ~= 0 and was > 0 then
          for own = at, at + layout.sizes[places.places[n]] - 1, 2 do
            if values[own] == number then
              local left = values[own + 1] - was
              values[own + 1], lasts_ms = left > 0 and left or 0, DAY_MS
            end
          end
        end
      elseif kind == 'quota' then
        local id = ids and ids[quotas] or ''
        local slot = id ~= '' and slot_of(values, at, id)
        if id ~= '' and not slot and was == 0 then slot = begin_slot(values, at, id) end
        if slot then -- else the period is long over
          values[slot + 1] = values[slot + 1] + is
          values[slot + 2] = math.max(0, values[slot + 2] - was)
          lasts_ms = 40 * DAY_MS
          if dims[n] == 'money' and values[at + 6] ~= 1 then
            note_early(early, spec.scopes[s], names[n], id, is)
          end
        end
      else
        values[at] = values[at] - is
        values[at + 1] = math.max(0, values[at + 1] - was)
        lasts_ms = LONGEST_MS
        if values[at + 2] ~= 1 then note_early(early, spec.scopes[s], names[n], '', is) end
      end
      if lasts_ms > keep_ms then keep_ms = lasts_ms end
    end
    if keep_ms > 0 then close(s, prefix .. 's:' .. spec.scopes[s], keep_ms) end
    from = to + 1
  end
end

local function zeros(count)
  local list = {}
  for n = 1, count do list[n] = 0 end
  return list
end

-- How a reservation was charged, for `move`.
local function how_of(spec, skipped, number, ids)
  return {rows_of(skipped), number, spec.quotas > 0 and {numbers(spec.ids, ids)} or nil}
end
