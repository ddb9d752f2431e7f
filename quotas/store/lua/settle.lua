-- True amounts replace the reserved ones, once.
-- KEYS: epoch, reservation, leases, scopes. ARGV: nonce, the settlement's epoch, spec charged,
-- amounts charged, ended_ms, charged_in_full_ms. Reply: {now_ms, 1 when it changed something}.

local got = redis.call('MGET', KEYS[1], KEYS[2])
local epoch = the_epoch(got[1], ARGV[1])
local state, held_epoch, owner, reply, held_spec, held_amounts, how
if got[2] then
  state, held_epoch, owner, reply, held_spec, held_amounts, how = cmsgpack.unpack(got[2])
  if state ~= 'held' and state ~= 'expired' and state ~= 'counted' then return {now_ms, 0} end
elseif ARGV[2] == epoch then
  return {now_ms, 0}
end

if state == nil or state == 'counted' or held_epoch ~= epoch then
  -- This life of the data never held what was reserved: nothing to give back, all of it to take.
  -- Money only where SQL's sum does not have it already: not before it is seeded, nor when counted.
  local spec, charged = {cmsgpack.unpack(ARGV[3])}, cmsgpack.unpack(ARGV[4])
  local scopes, ends, names, kinds, _, _, dims, _, periods = unpack(spec)
  local from, quotas, full = 1, 0, {}
  for s = 1, #scopes do
    for n = from, ends[s] do
      full[n] = charged[n] > 0 and kinds[n] ~= 'concurrency' and 1 or 0
      if kinds[n] == 'quota' then
        if full[n] == 1 then full[n] = covering(periods, 5 * quotas + 1) or 0 end
        quotas = quotas + 1
      end
      if dims[n] == 'money' and full[n] ~= 0 then
        local raw = redis.call('HGET', prefix .. 's:' .. scopes[s], names[n])
        local seeded
        if kinds[n] == 'quota' then
          seeded = tally_of(raw, epoch, true)[8] == 1
        else
          seeded = kinds[n] == 'bucket' or purse_of(raw, epoch)[4] == 1
        end
        if state == 'counted' or not seeded then full[n] = 0 end
      end
    end
    from = ends[s] + 1
  end
  move(spec, zeros(#names), charged, full, epoch)
  mark(KEYS[2], 'settled', reply, ARGV[6], epoch)
  return {now_ms, 1}
end

local spec = {cmsgpack.unpack(held_spec)}
local scopes, ends, names, kinds, _, _, dims = unpack(spec)
local reserved, charged = cmsgpack.unpack(held_amounts), cmsgpack.unpack(ARGV[4])
local actual = charged
if held_spec ~= ARGV[3] then
  -- Other limits than were charged: matched by level, else by dimension, else as reserved.
  local exact, loose, from = {}, {}, 1
  local charged_scopes, charged_ends, charged_names, _, _, _, charged_dims = cmsgpack.unpack(ARGV[3])
  for s = 1, #charged_scopes do
    for n = from, charged_ends[s] do
      exact[charged_scopes[s] .. '\n' .. charged_names[n]] = charged[n]
      if not loose[charged_dims[n]] then loose[charged_dims[n]] = charged[n] end
    end
    from = charged_ends[s] + 1
  end
  actual, from = {}, 1
  for s = 1, #scopes do
    for n = from, ends[s] do
      actual[n] = exact[scopes[s] .. '\n' .. names[n]] or loose[dims[n]] or reserved[n]
    end
    from = ends[s] + 1
  end
end
if state == 'expired' then -- its holds went free then
  for n = 1, #names do
    if kinds[n] == 'concurrency' then how[n] = 0 end
  end
end
local early = {}
move(spec, reserved, actual, how, epoch, nil, early)
mark(KEYS[2], 'settled', reply, ARGV[2] == epoch and ARGV[5] or ARGV[6], epoch, #early > 0 and early)
return {now_ms, 1}
