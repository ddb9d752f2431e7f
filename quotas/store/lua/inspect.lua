-- What reserve would say now, and every level: reads only.
-- Keys: epoch, reservation (unused), leases, scopes. Arguments: owner, spec, amounts.
-- Reply: reserve's, then one list a row: used, held, balance or -1, and (owner, holds, lease_ms) each.

local function inspect(keys, args)
  begin(keys[1])
  local found = call('MGET', spread(keys))
  local epoch = known_epoch(found[1]) or ''
  local spec, leases = spec_of(args[2]), leases_of(found[3])
  local amounts, number = {numbers(spec.amounts, args[3])}, number_of(leases, args[1])
  local binding, wait, reason = judge(spec, found, 3, amounts, epoch, number, leases.lives)
  local owner_of = {}
  for owner, lease in pairs(leases.owners) do owner_of[lease[2]] = owner end
  local gauges = {}
  for s = 1, #spec.scopes do
    local values, layout, places = opened[s], laid[s], placed[s]
    for n = (spec.ends[s - 1] or 0) + 1, spec.ends[s] do
      local kind, at = spec.kinds[n], places[n]
      tell(n, kind, levels[n], spec.full[n], spec.rates[n])
      local gauge = {spec.capacities[n] - told[2 * n - 1], 0, false}
      if kind == 'quota' then
        local slot = chosen[n] and slot_of(values, at, chosen[n])
        gauge[1] = slot and values[slot + 1] or 0
        gauge[2] = slot and values[slot + 2] or 0
      elseif kind == 'balance' then
        gauge = {0, values[at + 1], values[at + 2] == 1 and int(values[at]) or false}
      elseif kind == 'concurrency' then
        for seat_at = at, at + layout.sizes[places.places[n]] - 1, 2 do
          local holder, holds = values[seat_at], values[seat_at + 1]
          local lease_ms = math.max(0, (leases.lives[holder] or 0) - now_ms)
          if holds > 0 and owner_of[holder] and (lease_ms > 0 or holder == number) then
            for _, value in ipairs({owner_of[holder], holds, lease_ms}) do
              gauge[#gauge + 1] = value
            end
          end
        end
      end
      gauges[n] = gauge
    end
  end
  return {
    now_ms, binding == 0 and 1 or 0, epoch, pack_told(spec), list_of(skip, #spec.kinds),
    binding - 1, wait, reason, gauges,
  }
end
