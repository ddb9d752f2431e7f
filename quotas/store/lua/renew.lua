-- A living owner's lease of one tag. Keys: epoch (names the tag), reservation (unused), leases.
-- Arguments: owner, lease_ms (0 = it leaves). Owners whose lease ran out long ago are forgotten; one
-- that comes back before anybody pruned its holds has them again.
-- Reply: {now_ms, living owners}.

local function renew(keys, args)
  begin(keys[1])
  local leases = leases_of(call('GET', keys[3]))
  local kept, living = {}, 0
  for owner, lease in pairs(leases.owners) do
    if owner ~= args[1] and lease[1] > now_ms - SLACK_MS then
      kept[owner] = lease
      if lease[1] > now_ms then living = living + 1 end
    end
  end
  local lease_ms = tonumber(args[2])
  if lease_ms > 0 then
    kept[args[1]], living = {now_ms + lease_ms, number_of(leases, args[1])}, living + 1
  end
  call('SET', keys[3], pack(kept), 'PX', LEASES_KEPT_MS)
  return {now_ms, living}
end
