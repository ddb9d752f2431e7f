-- Holds go free and nothing goes back; a later settle or release still counts, once.
-- Keys: epoch, reservation, leases. Arguments: nonce. Reply: {now_ms, 1 when it changed something}.

local function expire(keys, args)
  begin(keys[1])
  local found = call('MGET', keys[1], keys[2])
  if not found[2] then return {now_ms, 0} end
  local epoch = the_epoch(found[1], args[1])
  local state, held_epoch, shadowed, skipped, number, shows, packed, counts, ids = recorded(found[2])
  if state ~= HELD then return {now_ms, 0} end
  if held_epoch == epoch then
    local spec = spec_of(packed)
    local reserved = {numbers(spec.amounts, counts)}
    open_all(spec, fetch(spec), 0, epoch)
    move(spec, reserved, zeros(#spec.kinds), how_of(spec, skipped, number, ids), 'concurrency')
  end
  call('SET', keys[2],
    record(EXPIRED, held_epoch, shadowed, skipped, number, shows, packed, counts, ids), 'KEEPTTL')
  return {now_ms, 1}
end
