-- True amounts replace the reserved ones, once.
-- Keys: epoch, reservation, leases, scopes. Arguments: nonce, the settlement's epoch, spec charged,
-- amounts charged, ended_ms, charged_in_full_ms. Reply: {now_ms, 1 when it changed something}.

-- How to charge where this life of the data never held what was reserved: there is nothing to give back,
-- and all of it to take. Money only where SQL's sum does not have it already: not before it is seeded,
-- nor when it was counted.
local function in_full(spec, charged, counted)
  local stay, ids = {}, {}
  for s = 1, #spec.scopes do
    local values, places = opened[s], placed[s]
    for n = (spec.ends[s - 1] or 0) + 1, spec.ends[s] do
      local kind = spec.kinds[n]
      if kind == 'quota' then ids[#ids + 1] = covering(spec.periods, spec.begins[n]) or '' end
      stay[n] = charged[n] == 0
      if spec.dims[n] == 'money' and kind ~= 'concurrency' then
        local seeded = kind == 'bucket' or values[places[n] + (kind == 'quota' and 6 or 2)] == 1
        if counted or not seeded then stay[n] = true end
      end
    end
  end
  return {stay, 0, ids}
end

-- Other limits than were charged: matched by level, else by dimension, else as reserved.
local function matched(spec, reserved, charged_spec, charged)
  local exact, loose, actual = {}, {}, {}
  for s, scope in ipairs(charged_spec.scopes) do
    for n = (charged_spec.ends[s - 1] or 0) + 1, charged_spec.ends[s] do
      exact[scope .. '\n' .. charged_spec.names[n]] = charged[n]
      if not loose[charged_spec.dims[n]] then loose[charged_spec.dims[n]] = charged[n] end
    end
  end
  for s, scope in ipairs(spec.scopes) do
    for n = (spec.ends[s - 1] or 0) + 1, spec.ends[s] do
      actual[n] = exact[scope .. '\n' .. spec.names[n]] or loose[spec.dims[n]] or reserved[n]
    end
  end
  return actual
end

local function settle(keys, args)
  begin(keys[1])
  local found = call('MGET', spread(keys))
  local epoch = the_epoch(found[1], args[1])
  local state, held_epoch, shadowed, skipped, number, shows, packed, counts, ids
  if found[2] then
    state, held_epoch, shadowed, skipped, number, shows, packed, counts, ids = recorded(found[2])
    if state ~= HELD and state ~= EXPIRED and state ~= COUNTED then return {now_ms, 0} end
  elseif args[2] == epoch then
    return {now_ms, 0}
  end

  local spec = spec_of(args[3])
  local charged = {numbers(spec.amounts, args[4])}
  if not state or state == COUNTED or held_epoch ~= epoch then
    open_all(spec, found, 3, epoch)
    move(spec, zeros(#charged), charged, in_full(spec, charged, state == COUNTED))
    mark(keys[2], SETTLED, args[6], held_epoch or epoch, shadowed, shows)
    return {now_ms, 1}
  end

  local reserved
  if packed == args[3] then
    reserved = {numbers(spec.amounts, counts)}
    open_all(spec, found, 3, epoch)
  else
    local charged_spec = spec
    spec = spec_of(packed)
    reserved = {numbers(spec.amounts, counts)}
    charged = matched(spec, reserved, charged_spec, charged)
    open_all(spec, fetch(spec), 0, epoch)
  end
  if state == EXPIRED then number = 0 end -- holds that went free when it expired are not freed again
  local early = {}
  move(spec, reserved, charged, how_of(spec, skipped, number, ids), nil, early)
  mark(keys[2], SETTLED, args[2] == epoch and args[5] or args[6], epoch, shadowed, shows,
    #early > 0 and pack(early) or nil)
  return {now_ms, 1}
end
