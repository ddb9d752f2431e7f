-- An open reservation is held again under this epoch, whatever the levels say; once.
-- KEYS: epoch, reservation, leases, scopes. ARGV: nonce, epoch meant, owner, id, ttl_ms, lease_ms,
-- leases_ms, spec, amounts. Reply: {now_ms, 1, or 0 when of another epoch or ended}.

local got = redis.call('MGET', KEYS[1], KEYS[2], KEYS[3])
local epoch = the_epoch(got[1], ARGV[1])
if epoch ~= ARGV[2] then return {now_ms, 0} end
local packed, counts, known = ARGV[8], ARGV[9], false
local reply = {now_ms, 1, epoch, -1, 0, '', ''}
if got[2] then
  local state, held_epoch, _, first, held_spec, held_amounts = cmsgpack.unpack(got[2])
  if state ~= 'held' and state ~= 'expired' then return {now_ms, 0} end
  if held_epoch == epoch then return {now_ms, 1} end
  -- The data outlived its epoch: its rates were charged then, with this reservation.
  reply, packed, counts, known = first, held_spec, held_amounts, true
end

local spec, amounts = {cmsgpack.unpack(packed)}, cmsgpack.unpack(counts)
local leases = leases_of(got[3])
local levels, kept, chosen, ends_at = {}, {}, {}, {}
local _, _, _, lives =
  judge(spec, amounts, epoch, ARGV[3], leases, levels, kept, chosen, ends_at, {})
local scopes, ends, names, kinds, capacities, rates, dims = unpack(spec)
local how, from, holds = {}, 1, false
for s = 1, #scopes do
  local fields = {}
  for n = from, ends[s] do
    local kind, amount, state = kinds[n], amounts[n], kept[n]
    local value
    how[n] = kind == 'quota' and (chosen[n] or 0) or kind == 'concurrency' and 0 or 1
    if kind == 'bucket' then
      if (amount > 0 and not known) or kept[n] then
        if known then amount = 0 end
        levels[n] = levels[n] - amount * TICKS
        value = struct.pack(BUCKET, levels[n], now_ms, capacities[n], rates[n])
      end
    elseif amount == 0 then
      value = nil
    elseif kind == 'concurrency' then
      how[n] = take_holds(state, chosen[n], ARGV[3], amount, ARGV[4])
      levels[n], holds, value = levels[n] - amount, true, cmsgpack.pack(state)
    elseif kind == 'balance' then
      state[2] = state[2] + amount
      if state[4] == 1 then levels[n] = levels[n] - amount end
      value = cmsgpack.pack(state)
    elseif chosen[n] then
      local slot = begin_slot(state, chosen[n])
      if known and dims[n] ~= 'money' then -- what it held was taken as used when the epoch began
        state[slot + 1] = math.max(0, state[slot + 1] - amount)
      end
      state[slot + 2] = state[slot + 2] + amount
      if dims[n] ~= 'money' or state[8] == 1 then levels[n] = levels[n] - amount end
      value = cmsgpack.pack(state)
    end
    if value then fields[#fields + 1], fields[#fields + 2] = names[n], value end
    if not known then
      reply[2 * n + 6], reply[2 * n + 7] =
        shown(kind, levels[n], capacities[n], rates[n], ends_at[n])
    end
  end
  write(scopes[s], fields, LONGEST_MS, lives[s])
  from = ends[s] + 1
end

if holds then keep_lease(leases, ARGV[3], tonumber(ARGV[6]), ARGV[7]) end
redis.call('SET', KEYS[2], cmsgpack.pack('held', epoch, ARGV[3], reply, packed, counts, how),
  'PX', ARGV[5])
return {now_ms, 1}
