-- Every charge looked at, nothing taken: shared by reserve and inspect. See quotas/store/memory.py.

-- Fills the tables given, row by row: `levels` (ticks for buckets, units left else), `kept` (what
-- the level was read into), `chosen` (a quota's period), `ends_at` (its end), `skip` (shadow limits
-- that would refuse). Returns binding row (0 = none), wait, reason; and `lives` by scope.
local function judge(spec, amounts, epoch, owner, leases, levels, kept, chosen, ends_at, skip)
  local scopes, ends, names, kinds, capacities, rates, dims, shadows, periods = unpack(spec)
  local binding, longest, reason = 0, 0, ''
  local from, quotas, lives = 1, 0, {}
  for s = 1, #scopes do
    local found = redis.call('HMGET', prefix .. 's:' .. scopes[s], '~', unpack(names, from, ends[s]))
    lives[s] = found[1]
    for n = from, ends[s] do
      local raw, kind, amount, capacity = found[n - from + 2], kinds[n], amounts[n], capacities[n]
      local wait, why = 0, ''
      if kind == 'bucket' then
        local rate = rates[n]
        local level = capacity * TICKS
        if raw then
          local old, at_ms, old_capacity, old_rate = struct.unpack(BUCKET, raw)
          kept[n] = at_ms > now_ms or old_capacity ~= capacity or old_rate ~= rate
          level = math.min(level, flowed(old, at_ms, old_capacity, old_rate))
        end
        levels[n] = level
        if amount > 0 and level < amount * TICKS then
          why = 'rate'
          if amount > capacity then
            wait, why = -1, 'never'
          elseif rate <= 0 then
            wait = -1
          else
            wait = -floor_div(level - amount * TICKS, rate)
          end
        end
      elseif kind == 'concurrency' then
        local list, total, own = living(raw, epoch, owner, leases)
        kept[n], chosen[n] = list, own
        levels[n] = capacity - total
        if amount > 0 and total + amount > capacity then
          if amount > capacity then wait, why = -1, 'never' else wait, why = GUESS_MS, kind end
        end
      elseif kind == 'quota' then
        local money = dims[n] == 'money'
        local tally = tally_of(raw, epoch, money)
        local id, ends_ms = covering(periods, 5 * quotas + 1)
        local slot = id and slot_of(tally, id)
        local used = slot and tally[slot + 1] or 0
        local held = slot and tally[slot + 2] or 0
        quotas = quotas + 1
        kept[n], chosen[n], ends_at[n] = tally, id, ends_ms
        levels[n] = capacity - used - held
        if not id or (money and tally[8] ~= 1) then levels[n] = 0 end
        if amount > 0 then
          if not id then
            wait, why = GUESS_MS, 'skewed'
          elseif amount > capacity then
            wait, why = -1, 'never'
          elseif money and tally[8] ~= 1 then
            wait, why = GUESS_MS, 'unbuilt'
          elseif used + amount > capacity then
            wait, why = ends_ms - now_ms, money and 'balance_spent' or 'quota'
            if ends_ms >= FOREVER_MS then wait = -1 end
          elseif used + held + amount > capacity then
            wait, why = GUESS_MS, money and 'balance_held' or 'quota_held'
          end
        end
      else
        local purse = purse_of(raw, epoch)
        local seeded = purse[4] == 1
        kept[n] = purse
        levels[n] = seeded and purse[1] + capacity - purse[2] or 0
        if amount > 0 then
          if not seeded then
            wait, why = GUESS_MS, 'unbuilt'
          elseif purse[1] + capacity < amount then
            wait, why = -1, 'balance_spent'
          elseif levels[n] < amount then
            wait, why = GUESS_MS, 'balance_held'
          end
        end
      end
      if wait ~= 0 then
        if shadows[n] == 1 then
          skip[n] = true
        elseif longest ~= -1 and (wait == -1 or wait > longest) then
          binding, longest, reason = n, wait, why
        end
      end
    end
    from = ends[s] + 1
  end
  return binding, longest, reason, lives
end

-- Level of a row as callers see it: units left, and ms to full again or to the next period.
local function shown(kind, level, capacity, rate, ends_ms)
  if kind == 'bucket' then return floor_div(level, TICKS), reset_ms(level, capacity, rate) end
  return level, ends_ms and ends_ms < FOREVER_MS and ends_ms - now_ms or 0
end

-- Rows that shadow limits would have refused, for the reply: "0 3".
local function named(skip, count)
  local rows = ''
  for n = 1, count do
    if skip[n] then rows = rows .. (rows == '' and '' or ' ') .. (n - 1) end
  end
  return rows
end
