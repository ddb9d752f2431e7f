-- Holds go free and nothing goes back; a later settle or release still counts, once.
-- KEYS: epoch, reservation, leases. Reply: {now_ms, 1 when it changed something}.

local raw = redis.call('GET', KEYS[2])
if not raw then return {now_ms, 0} end
local reservation = cmsgpack.unpack(raw)
if reservation.state ~= 'held' then return {now_ms, 0} end
free(reservation, cmsgpack.unpack(reservation.entries))
reservation.state = 'expired'
redis.call('SET', KEYS[2], cmsgpack.pack(reservation), 'KEEPTTL')
return {now_ms, 1}
