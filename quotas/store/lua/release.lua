-- Nothing was used: everything goes back, once; an unknown id leaves a tombstone.
-- Keys: epoch, reservation, leases. Arguments: nonce, ended_ms, tombstone_ms.
-- Reply: {now_ms, 1 when it changed something}.

local function release(keys, args)
  begin(keys[1])
  local found = call('MGET', keys[1], keys[2])
  local epoch = the_epoch(found[1], args[1])
  if not found[2] then
    mark(keys[2], TOMBSTONE, args[3])
    return {now_ms, 1}
  end
  local state, held_epoch, shadowed, skipped, number, shows, packed, counts, ids = recorded(found[2])
  if state ~= HELD and state ~= EXPIRED then return {now_ms, 0} end
  if held_epoch == epoch then
    local spec = spec_of(packed)
    local reserved = {numbers(spec.amounts, counts)}
    if state == EXPIRED then number = 0 end
    open_all(spec, fetch(spec), 0, epoch)
    move(spec, reserved, zeros(#spec.kinds), how_of(spec, skipped, number, ids))
  end
  mark(keys[2], RELEASED, args[2], held_epoch, shadowed, shows)
  return {now_ms, 1}
end
