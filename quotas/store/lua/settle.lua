-- True amounts replace the reserved ones, once.
-- KEYS: epoch, reservation, leases, then one a charge.
-- ARGV: nonce, the settlement's epoch, entries charged (MessagePack), ended_ms, charged_in_full_ms.
-- Reply: {now_ms, 1 when it changed something}.

local epoch = the_epoch(redis.call('GET', KEYS[1]), ARGV[1])
local raw = redis.call('GET', KEYS[2])

-- This life of the data never held what was reserved: nothing to give back, all of it to take.
local function charge_in_full()
  for _, entry in ipairs(cmsgpack.unpack(ARGV[3])) do
    if entry[2] == 'bucket' and entry[3] > 0 then add(entry, -entry[3]) end
  end
end

if not raw then
  if ARGV[2] == epoch then return {now_ms, 0} end
  charge_in_full()
  mark('settled', nil, ARGV[5])
  return {now_ms, 1}
end

local reservation = load(raw)
if reservation.state ~= 'held' and reservation.state ~= 'expired' then return {now_ms, 0} end
if reservation.state == 'held' then free(reservation) end
if reservation.epoch ~= epoch then
  charge_in_full()
  mark('settled', reservation.reply, ARGV[5])
  return {now_ms, 1}
end

local exact, loose = {}, {}
for _, entry in ipairs(cmsgpack.unpack(ARGV[3])) do
  exact[entry[1]] = entry[3]
  if not loose[entry[6]] then loose[entry[6]] = entry[3] end
end
for _, entry in ipairs(reservation.entries) do
  if entry[2] == 'bucket' then
    local actual = exact[entry[1]] or loose[entry[6]] or entry[3]
    if actual ~= entry[3] then add(entry, entry[3] - actual) end
  end
end
mark('settled', reservation.reply, ARGV[4])
return {now_ms, 1}
