-- True amounts replace the reserved ones, once.
-- Keys: epoch, reservation, leases, scopes. Arguments: nonce, the settlement's epoch, spec charged,
-- amounts charged, ended_ms, charged_in_full_ms. Reply: {now_ms, 1 when it changed something}.

-- Which rows to charge where this life of the data never held what was reserved: there is nothing to
-- give back, and all of it to take. Money only where SQL's sum does not have it already: not before it
-- is seeded, nor when it was counted.
local function in_full(spec, charged, epoch, counted)
  local scopes, ends, names, kinds, _, _, dims, _, periods = unpack(spec, 1, 9)
  local from, quotas, full = 1, 0, {}
  for s = 1, #scopes do
    for n = from, ends[s] do
      full[n] = charged[n] > 0 and kinds[n] ~= 'concurrency' and 1 or 0
      if kinds[n] == 'quota' then
        if full[n] == 1 then full[n] = covering(periods, 5 * quotas + 1) or 0 end
        quotas = quotas + 1
      end
      if dims[n] == 'money' and full[n] ~= 0 then
        local raw = call('HGET', prefix .. 's:' .. scopes[s], names[n])
        local seeded
        if kinds[n] == 'quota' then
          seeded = tally_of(raw, epoch, true)[8] == 1
        else
          seeded = kinds[n] == 'bucket' or purse_of(raw, epoch)[4] == 1
        end
        if counted or not seeded then full[n] = 0 end
      end
    end
    from = ends[s] + 1
  end
  return full
end

-- Other limits than were charged: matched by level, else by dimension, else as reserved.
local function matched(spec, reserved, charged_spec, charged)
  local exact, loose, actual = {}, {}, {}
  local scopes, ends, names, _, _, _, dims = unpack(charged_spec, 1, 7)
  local from = 1
  for s = 1, #scopes do
    for n = from, ends[s] do
      exact[scopes[s] .. '\n' .. names[n]] = charged[n]
      if not loose[dims[n]] then loose[dims[n]] = charged[n] end
    end
    from = ends[s] + 1
  end
  scopes, ends, names, _, _, _, dims = unpack(spec, 1, 7)
  from = 1
  for s = 1, #scopes do
    for n = from, ends[s] do
      actual[n] = exact[scopes[s] .. '\n' .. names[n]] or loose[dims[n]] or reserved[n]
    end
    from = ends[s] + 1
  end
  return actual
end

local function settle(keys, args)
  begin(keys[1])
  local got = call('MGET', keys[1], keys[2])
  local epoch = the_epoch(got[1], args[1])
  local state, held_epoch, shadowed, shows, packed, counts, how, _
  if got[2] then
    state, held_epoch, _, shadowed, shows, packed, counts, how = unpacked(got[2])
    if state ~= 'held' and state ~= 'expired' and state ~= 'counted' then return {now_ms, 0} end
  elseif args[2] == epoch then
    return {now_ms, 0}
  end

  local charged_spec = spec_of(args[3])
  local charged = amounts_of(charged_spec, args[4])
  if state == nil or state == 'counted' or held_epoch ~= epoch then
    local full = in_full(charged_spec, charged, epoch, state == 'counted')
    move(charged_spec, zeros(#charged), charged, full, epoch)
    mark(keys[2], 'settled', args[6], held_epoch or epoch, shadowed, shows)
    return {now_ms, 1}
  end

  local spec, actual = charged_spec, charged
  if packed ~= args[3] then spec = spec_of(packed) end
  local reserved = amounts_of(spec, counts)
  if packed ~= args[3] then actual = matched(spec, reserved, charged_spec, charged) end
  if state == 'expired' then without_holds(spec, how) end
  local early = {}
  move(spec, reserved, actual, how, epoch, nil, early)
  mark(keys[2], 'settled', args[2] == epoch and args[5] or args[6], epoch, shadowed, shows,
    #early > 0 and early)
  return {now_ms, 1}
end
