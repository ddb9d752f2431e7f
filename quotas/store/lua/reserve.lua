-- All charges or none, in one step; a second call with the id returns the first verdict.
-- Keys: epoch, reservation, leases, scopes. Arguments: nonce, owner, ttl_ms, spec, amounts.
-- Reply: {now_ms, 1 | 0 | -1, epoch, levels (remaining, reset_ms, ...), shadowed rows} and, refused,
-- {..., binding row, retry_after_ms, reason}; -1: the id was ended before it was reserved. A refusal
-- leaves nothing behind but what flowed into levels.

local function reserve(keys, args)
  begin(keys[1])
  local found = call('MGET', spread(keys))
  local epoch = the_epoch(found[1], args[1])
  if found[2] then
    local _, first_epoch, shadowed, _, _, shows = recorded(found[2])
    if not shows then return {now_ms, -1} end
    return {now_ms, 1, first_epoch, shows, shadowed}
  end

  local owner, packed, counts = args[2], args[4], args[5]
  local spec, leases = spec_of(packed), leases_of(found[3])
  local amounts, lives, number = {numbers(spec.amounts, counts)}, leases.lives, number_of(leases, owner)
  local binding, wait, reason, shadowed = judge(spec, found, 3, amounts, epoch, number, lives)
  local admitted = binding == 0
  local ends, kinds, rates, full = spec.ends, spec.kinds, spec.rates, spec.full
  local from, holds, gone = 1, false, nil
  for s = 1, #ends do
    local to, keep_ms, values, places = ends[s], 0, opened[s], placed[s]
    if admitted and unseated[s] then
      gone = gone or {}
      values, places = seat(s, spec, amounts, number, lives, gone)
    end
    for n = from, to do
      local kind, level, amount = kinds[n], levels[n], amounts[n]
      local takes = admitted and amount > 0 and not skip[n]
      local lasts_ms, reset = 0, 0
      if kind == 'bucket' then
        local rate = rates[n]
        if takes then
          local at = places[n]
          level = level - amount * TICKS
          values[at], values[at + 1] = level, now_ms
        end
        local missing = full[n] - level
        if missing > 0 and rate > 0 then
          local rest = missing % rate
          reset = rest == 0 and missing / rate or (missing - rest) / rate + 1
        end
        if takes or changed[s] then lasts_ms = rate > 0 and reset + MARGIN_MS or LONGEST_MS end
        level = (level - level % TICKS) / TICKS
      else
        local ends_ms = kind == 'quota' and ends_at[n]
        if takes then
          level = level - amount
          if kind == 'concurrency' then
            local own = seats[n] + 1
            values[own], holds, lasts_ms = values[own] + amount, true, tonumber(args[3])
          elseif kind == 'quota' then
            local slot = begin_slot(values, places[n], chosen[n]) + 2
            values[slot] = values[slot] + amount
            lasts_ms = ends_ms - now_ms + DAY_MS
          else
            local held = places[n] + 1
            values[held], lasts_ms = values[held] + amount, LONGEST_MS
          end
        end
        if ends_ms and ends_ms < FOREVER_MS then reset = ends_ms - now_ms end
      end
      told[2 * n - 1], told[2 * n] = level, reset
      if lasts_ms > keep_ms then keep_ms = lasts_ms end
    end
    -- Written when units are taken, when a limit's figures changed, and when the clock stepped back;
    -- else what flowed in is found again from the old value.
    if keep_ms > 0 then close(s, keys[s + 3], keep_ms) end
    from = to + 1
  end

  if holds then keep_lease(leases, owner, number, gone and next(gone) and gone) end
  local shows, rows = pack_told(spec), shadowed and list_of(skip, #kinds) or ''
  if not admitted then return {now_ms, 0, epoch, shows, rows, binding - 1, wait, reason} end
  call('SET', keys[2],
    record(HELD, epoch, rows, rows, holds and number or 0, shows, packed, counts, pack_chosen(spec)),
    'PX', args[3])
  return {now_ms, 1, epoch, shows, rows}
end
