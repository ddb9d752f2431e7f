-- What reserve would say now, and every level: reads only.
-- Keys: epoch, reservation (unused), leases, scopes. Arguments: owner, spec, amounts.
-- Reply: reserve's, then one list a row: used, held, balance or -1, and (owner, holds, lease_ms) each.

local function inspect(keys, args)
  begin(keys[1])
  local held = call('MGET', keys[1], keys[3])
  local epoch = known_epoch(held[1]) or ''
  local spec = spec_of(args[2])
  local leases = leases_of(held[2])
  local binding, wait, reason =
    judge(spec, keys, amounts_of(spec, args[3]), epoch, args[1], leases)
  local _, _, names, kinds, capacities, rates = unpack(spec, 1, 6)
  local gauges = {}
  for n = 1, #names do
    local kind, state = kinds[n], kept[n]
    local units, reset = shown(kind, levels[n], capacities[n], rates[n], ends_at[n])
    told[2 * n - 1], told[2 * n] = units, reset
    local gauge = {capacities[n] - units, 0, false}
    if kind == 'quota' then
      local slot = chosen[n] and slot_of(state, chosen[n])
      gauge[1] = slot and state[slot + 1] or 0
      gauge[2] = slot and state[slot + 2] or 0
    elseif kind == 'balance' then
      gauge = {0, state[2], state[4] == 1 and int(state[1]) or false}
    elseif kind == 'concurrency' then
      for i = 2, #state, 3 do
        local lease_ms = math.max(0, (leases[state[i]] or 0) - now_ms)
        for _, value in ipairs({state[i], state[i + 1], lease_ms}) do gauge[#gauge + 1] = value end
      end
    end
    gauges[n] = gauge
  end
  return {
    now_ms, binding == 0 and 1 or 0, epoch, pack_told(spec), named(#names),
    binding - 1, wait, reason, gauges,
  }
end
