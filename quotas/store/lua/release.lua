-- Nothing was used: everything goes back, once; an unknown id leaves a tombstone.
-- Keys: epoch, reservation, leases. Arguments: nonce, ended_ms, tombstone_ms.
-- Reply: {now_ms, 1 when it changed something}.

local function release(keys, args)
  begin(keys[1])
  local got = call('MGET', keys[1], keys[2])
  local epoch = the_epoch(got[1], args[1])
  if not got[2] then
    mark(keys[2], 'tombstone', args[3])
    return {now_ms, 1}
  end
  local state, held_epoch, _, shadowed, shows, packed, counts, how = unpacked(got[2])
  if state ~= 'held' and state ~= 'expired' then return {now_ms, 0} end
  if held_epoch == epoch then
    local spec = spec_of(packed)
    local reserved = amounts_of(spec, counts)
    if state == 'expired' then without_holds(spec, how) end
    move(spec, reserved, zeros(#reserved), how, epoch)
  end
  mark(keys[2], 'released', args[2], held_epoch, shadowed, shows)
  return {now_ms, 1}
end
