-- Every charge looked at, nothing taken: shared by reserve, inspect and rehold. See
-- quotas/store/memory.py.

-- What was found of each row, filled again by every `judge`: the level (ticks for buckets, units left
-- else), a quota's period and its end, where this owner's holds stand, whether a shadow limit would
-- refuse. By scope, whether its holds must be seated anew before any is taken.
local levels, chosen, ends_at, seats, skip, unseated = {}, {}, {}, {}, {}, {}

local function look_quota(values, at, spec, n, amount)
  local capacity, money = spec.capacities[n], spec.dims[n] == 'money'
  local id, ends_ms = covering(spec.periods, spec.begins[n])
  local slot = id and slot_of(values, at, id)
  local used = slot and values[slot + 1] or 0
  local held = slot and values[slot + 2] or 0
  local blind = not id or (money and values[at + 6] ~= 1)
  chosen[n], ends_at[n] = id, ends_ms
  levels[n] = blind and 0 or capacity - used - held
  if amount == 0 then return 0, '' end
  if not id then return GUESS_MS, 'skewed' end
  if amount > capacity then return -1, 'never' end
  if blind then return GUESS_MS, 'unbuilt' end
  if used + amount > capacity then
    return ends_ms >= FOREVER_MS and -1 or ends_ms - now_ms, money and 'balance_spent' or 'quota'
  end
  if used + held + amount > capacity then return GUESS_MS, money and 'balance_held' or 'quota_held' end
  return 0, ''
end

local function look_balance(values, at, credit, n, amount)
  local level, held, seeded = values[at], values[at + 1], values[at + 2] == 1
  local left = seeded and level + credit - held or 0
  levels[n] = left
  if amount == 0 then return 0, '' end
  if not seeded then return GUESS_MS, 'unbuilt' end
  if level + credit < amount then return -1, 'balance_spent' end
  if left < amount then return GUESS_MS, 'balance_held' end
  return 0, ''
end

-- Returns the binding row (0 = none), its wait, its reason, and whether any shadow limit would refuse.
-- `found[base + s]` is scope s's string; `number` is the owner's own, `lives` those of all.
local function judge(spec, found, base, amounts, epoch, number, lives)
  local ends, kinds, capacities = spec.ends, spec.kinds, spec.capacities
  local rates, full, shadows = spec.rates, spec.full, spec.shadows
  local binding, longest, reason, shadowed = 0, 0, '', false
  local from = 1
  for s = 1, #ends do
    local to, empty = ends[s], false
    local values, places, layout = open(s, found[base + s], spec, epoch, true)
    for n = from, to do
      local kind, amount, at = kinds[n], amounts[n], places[n]
      local wait, why = 0, ''
      if kind == 'bucket' then
        local level, rate, most = values[at], rates[n], full[n]
        local elapsed = now_ms - values[at + 1]
        if elapsed > 0 then
          level = level + elapsed * rate
          if level > most then level = most end
        elseif elapsed < 0 then -- the clock stepped back: nothing flows in, anchored at the new time
          values[at + 1], changed[s] = now_ms, true
        end
        levels[n] = level
        local asked = amount * TICKS
        if asked > level and amount > 0 then
          if amount > capacities[n] then
            wait, why = -1, 'never'
          elseif rate <= 0 then
            wait, why = -1, 'rate'
          else
            wait, why = reset_ms(asked - level, rate), 'rate'
          end
        end
      elseif kind == 'concurrency' then
        local capacity, total, own = capacities[n], 0, nil
        for seat = at, at + layout.sizes[places.places[n]] - 1, 2 do
          local holder = values[seat]
          if holder == number then
            own, total = seat, total + values[seat + 1]
          elseif (lives[holder] or 0) > now_ms then
            total = total + values[seat + 1]
          else
            empty = true
          end
        end
        seats[n], levels[n] = own, capacity - total
        if amount > 0 then
          if not own then empty = true end
          if amount > capacity then
            wait, why = -1, 'never'
          elseif total + amount > capacity then
            wait, why = GUESS_MS, kind
          end
        end
      elseif kind == 'quota' then
        wait, why = look_quota(values, at, spec, n, amount)
      else
        wait, why = look_balance(values, at, capacities[n], n, amount)
      end
      skip[n] = false
      if wait ~= 0 then
        if shadows[n] == 1 then
          skip[n], shadowed = true, true
        elseif longest ~= -1 and (wait == -1 or wait > longest) then
          binding, longest, reason = n, wait, why
        end
      end
    end
    unseated[s], from = empty, to + 1
  end
  return binding, longest, reason, shadowed
end

-- A scope's holds without those of the dead, and with a seat for this owner's where it takes some.
-- `gone` gets the numbers that were pruned.
local function seat(s, spec, amounts, number, lives, gone)
  local values, layout = opened[s], laid[s]
  local cells = apart(layout, values)
  for n = (spec.ends[s - 1] or 0) + 1, spec.ends[s] do
    if spec.kinds[n] == 'concurrency' then
      local cell, kept, own = cells[spec.names[n]], {}, false
      for at = 1, #cell, 2 do
        local holder, mine = cell[at], cell[at] == number
        if mine or (lives[holder] or 0) > now_ms then
          kept[#kept + 1], kept[#kept + 2], own = holder, cell[at + 1], own or mine
        elseif lives[holder] then
          gone[holder] = true
        end
        cell[at], cell[at + 1] = nil, nil
      end
      if amounts[n] > 0 and not own then kept[#kept + 1], kept[#kept + 2] = number, 0 end
      for at = 1, #kept do cell[at] = kept[at] end
    end
  end
  layout, values = together(cells, values[1], values[2])
  local places = fitting(layout, spec, s)
  for n = (spec.ends[s - 1] or 0) + 1, spec.ends[s] do
    if spec.kinds[n] == 'concurrency' then
      local at = places[n]
      for own = at, at + layout.sizes[places.places[n]] - 1, 2 do
        if values[own] == number then seats[n] = own end
      end
    end
  end
  opened[s], laid[s], placed[s] = values, layout, places
  return values, places
end

-- Units left and ms of every row, filled again by every step that answers with them.
local told = {}

-- Level of a row as callers see it: units left, and ms to full again or to the next period.
local function tell(n, kind, level, full, rate)
  if kind == 'bucket' then
    told[2 * n - 1], told[2 * n] = (level - level % TICKS) / TICKS, reset_ms(full - level, rate)
  else
    local ends_ms = kind == 'quota' and ends_at[n]
    told[2 * n - 1] = level
    told[2 * n] = ends_ms and ends_ms < FOREVER_MS and ends_ms - now_ms or 0
  end
end

local function pack_told(spec)
  return binary(spec.levels, spread(told, 1, 2 * #spec.names))
end

-- The periods charged, of every quota; "" where none was.
local function pack_chosen(spec)
  if spec.quotas == 0 then return '' end
  local ids = {}
  for n, kind in ipairs(spec.kinds) do
    if kind == 'quota' then ids[#ids + 1] = chosen[n] or '' end
  end
  return binary(spec.ids, spread(ids))
end
