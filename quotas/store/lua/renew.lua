-- A living owner's lease of one tag. Keys: epoch (names the tag), reservation (unused), leases.
-- Arguments: owner, lease_ms (0 = it leaves), keep_ms. Owners whose lease ran out are forgotten.
-- Reply: {now_ms, living owners}.

local function renew(keys, args)
  begin(keys[1])
  local kept, living = {}, 0
  for owner, lives_to in pairs(leases_of(call('GET', keys[3]))) do
    if lives_to > now_ms and owner ~= args[1] then kept[owner], living = lives_to, living + 1 end
  end
  local lease_ms = tonumber(args[2])
  if lease_ms > 0 then kept[args[1]], living = now_ms + lease_ms, living + 1 end
  call('SET', keys[3], pack(kept), 'PX', args[3])
  return {now_ms, living}
end
