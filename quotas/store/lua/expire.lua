-- Holds go free and nothing goes back; a later settle or release still counts, once.
-- Keys: epoch, reservation, leases. Arguments: nonce. Reply: {now_ms, 1 when it changed something}.

local function expire(keys, args)
  begin(keys[1])
  local got = call('MGET', keys[1], keys[2])
  if not got[2] then return {now_ms, 0} end
  local epoch = the_epoch(got[1], args[1])
  local state, held_epoch, owner, shadowed, shows, packed, counts, how = unpacked(got[2])
  if state ~= 'held' then return {now_ms, 0} end
  if held_epoch == epoch then
    local spec = spec_of(packed)
    local reserved = amounts_of(spec, counts)
    move(spec, reserved, zeros(#reserved), how, epoch, 'concurrency')
  end
  call('SET', keys[2],
    pack('expired', held_epoch, owner, shadowed, shows, packed, counts, how), 'KEEPTTL')
  return {now_ms, 1}
end
