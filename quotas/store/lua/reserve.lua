-- All charges or none, in one step; a second call with the id returns the first verdict.
-- Keys: epoch, reservation, leases, scopes. Arguments: nonce, owner, id, ttl_ms, lease_ms, leases_ms,
-- spec, amounts. Reply: {now_ms, 1 | 0 | -1, epoch, levels (remaining, reset_ms, ...), shadowed rows} and,
-- refused, {..., binding row, retry_after_ms, reason}; -1: the id was ended before it was reserved. A refusal leaves
-- nothing behind but what flowed into levels.

local function reserve(keys, args)
  begin(keys[1])
  local held = call('MGET', keys[1], keys[2], keys[3])
  local epoch = the_epoch(held[1], args[1])
  if held[2] then
    local _, first_epoch, _, shadowed, shows = unpacked(held[2])
    if not shows then return {now_ms, -1} end
    return {now_ms, 1, first_epoch, shows, shadowed}
  end

  local owner, packed = args[2], args[7]
  local spec = spec_of(packed)
  local amounts = amounts_of(spec, args[8])
  local leases = leases_of(held[3])
  local binding, wait, reason, shadowed = judge(spec, keys, amounts, epoch, owner, leases)
  local admitted = binding == 0
  local _, ends, names, kinds, capacities, rates = unpack(spec, 1, 6)
  local how, from, holds = {}, 1, false
  for s = 1, #ends do
    local to, count, keep_ms = ends[s], 0, 0
    for n = from, to do
      local kind, level, amount = kinds[n], levels[n], amounts[n]
      local takes = admitted and amount > 0 and not skip[n]
      local lasts_ms, reset = 0, 0
      how[n] = skip[n] and 0 or 1
      if kind == 'bucket' then
        local capacity, rate = capacities[n], rates[n]
        if takes then level = level - amount * TICKS end
        reset = reset_ms(level, capacity, rate)
        -- Written when units are taken, when the limit's figures changed, and when the clock stepped
        -- back; else what flowed in is found again from the old value.
        if takes or kept[n] then
          fields[count + 1] = names[n]
          fields[count + 2] = binary(BUCKET, level, now_ms, capacity, rate)
          count, lasts_ms = count + 2, rate > 0 and reset + MARGIN_MS or LONGEST_MS
        end
        level = (level - level % TICKS) / TICKS
      else
        local state, ends_ms = kept[n], ends_at[n]
        if kind == 'concurrency' or (kind == 'quota' and not chosen[n]) then
          how[n] = 0
        elseif kind == 'quota' and not skip[n] then
          how[n] = chosen[n]
        end
        if takes then
          level = level - amount
          if kind == 'concurrency' then
            how[n] = take_holds(state, chosen[n], owner, amount, args[3])
            holds, lasts_ms = true, tonumber(args[4])
          elseif kind == 'quota' then
            local slot = begin_slot(state, chosen[n])
            state[slot + 2] = state[slot + 2] + amount
            lasts_ms = math.min(LONGEST_MS, ends_ms - now_ms + DAY_MS)
          else
            state[2] = state[2] + amount
            lasts_ms = LONGEST_MS
          end
          count = put(count, names[n], pack(state))
        end
        if ends_ms and ends_ms < FOREVER_MS then reset = ends_ms - now_ms end
      end
      told[2 * n - 1], told[2 * n] = level, reset
      if lasts_ms > keep_ms then keep_ms = lasts_ms end
    end
    write(keys[s + 3], count, keep_ms, lives[s])
    from = to + 1
  end

  if holds then keep_lease(leases, owner, tonumber(args[5]), args[6]) end
  local shows, rows = pack_told(spec), shadowed and named(#names) or ''
  if not admitted then return {now_ms, 0, epoch, shows, rows, binding - 1, wait, reason} end
  call('SET', keys[2], pack('held', epoch, owner, rows, shows, packed, args[8], how), 'PX', args[4])
  return {now_ms, 1, epoch, shows, rows}
end
