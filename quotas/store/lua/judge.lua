-- Every charge looked at, nothing taken: shared by reserve, inspect and rehold. See
-- quotas/store/memory.py.

-- What was found of each row, filled again by every `judge`: the level (ticks for buckets, units left
-- else), what it was read into, a quota's period and its end, whether a shadow limit would refuse.
local levels, kept, chosen, ends_at, skip = {}, {}, {}, {}, {}
local lives = {} -- by scope: its "~"

local function look_quota(raw, epoch, money, amount, capacity, periods, at, n)
  local tally = tally_of(raw, epoch, money)
  local id, ends_ms = covering(periods, at)
  local slot = id and slot_of(tally, id)
  local used = slot and tally[slot + 1] or 0
  local held = slot and tally[slot + 2] or 0
  local blind = not id or (money and tally[8] ~= 1)
  kept[n], chosen[n], ends_at[n] = tally, id, ends_ms
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

local function look_balance(raw, epoch, amount, credit, n)
  local purse = purse_of(raw, epoch)
  local seeded = purse[4] == 1
  local left = seeded and purse[1] + credit - purse[2] or 0
  kept[n], levels[n] = purse, left
  if amount == 0 then return 0, '' end
  if not seeded then return GUESS_MS, 'unbuilt' end
  if purse[1] + credit < amount then return -1, 'balance_spent' end
  if left < amount then return GUESS_MS, 'balance_held' end
  return 0, ''
end

-- Returns the binding row (0 = none), its wait, its reason, and whether any shadow limit would refuse.
local function judge(spec, keys, amounts, epoch, owner, leases)
  local _, ends, names, kinds, capacities, rates, dims, shadows, periods = unpack(spec, 1, 9)
  local binding, longest, reason, shadowed = 0, 0, '', false
  local from, quotas = 1, 0
  for s = 1, #ends do
    local to = ends[s]
    local found = call('HMGET', keys[s + 3], '~', unpack(names, from, to))
    lives[s] = found[1]
    for n = from, to do
      local raw, kind, amount, capacity = found[n - from + 2], kinds[n], amounts[n], capacities[n]
      local wait, why = 0, ''
      skip[n] = false
      if kind == 'bucket' then
        local rate = rates[n]
        local level = capacity * TICKS
        kept[n] = false
        if raw then
          local old, at_ms, old_capacity, old_rate = numbers(BUCKET, raw)
          if at_ms > now_ms or old_capacity ~= capacity or old_rate ~= rate then kept[n] = true end
          old = flowed(old, at_ms, old_capacity, old_rate)
          if old < level then level = old end
        end
        levels[n] = level
        if amount > 0 and level < amount * TICKS then
          if amount > capacity then
            wait, why = -1, 'never'
          elseif rate <= 0 then
            wait, why = -1, 'rate'
          else
            local missing = amount * TICKS - level
            local rest = missing % rate
            wait, why = rest == 0 and missing / rate or (missing - rest) / rate + 1, 'rate'
          end
        end
      elseif kind == 'concurrency' then
        local list, total, own = living(raw, epoch, owner, leases)
        kept[n], chosen[n], ends_at[n] = list, own, nil
        levels[n] = capacity - total
        if amount > 0 and total + amount > capacity then
          if amount > capacity then wait, why = -1, 'never' else wait, why = GUESS_MS, kind end
        end
      elseif kind == 'quota' then
        wait, why = look_quota(
          raw, epoch, dims[n] == 'money', amount, capacity, periods, 5 * quotas + 1, n)
        quotas = quotas + 1
      else
        chosen[n], ends_at[n] = nil, nil
        wait, why = look_balance(raw, epoch, amount, capacity, n)
      end
      if wait ~= 0 then
        if shadows[n] == 1 then
          skip[n], shadowed = true, true
        elseif longest ~= -1 and (wait == -1 or wait > longest) then
          binding, longest, reason = n, wait, why
        end
      end
    end
    from = to + 1
  end
  return binding, longest, reason, shadowed
end

-- Level of a row as callers see it: units left, and ms to full again or to the next period.
local function shown(kind, level, capacity, rate, ends_ms)
  if kind == 'bucket' then
    return (level - level % TICKS) / TICKS, reset_ms(level, capacity, rate)
  end
  return level, ends_ms and ends_ms < FOREVER_MS and ends_ms - now_ms or 0
end

-- Units left and ms of every row, filled again by every step that answers with them.
local told = {}

local function pack_told(spec)
  return binary(spec[11], unpack(told, 1, 2 * #spec[3]))
end

-- Rows that shadow limits would have refused, for the reply: "0 3".
local function named(count)
  local rows = ''
  for n = 1, count do
    if skip[n] then rows = rows .. (rows == '' and '' or ' ') .. (n - 1) end
  end
  return rows
end
