-- A living owner's lease of one tag. Keys: epoch (names the tag), reservation (unused), leases.
-- Arguments: owner, lease_ms (0 = it leaves), keep_ms. Owners whose lease ran out are forgotten.
-- Reply: {now_ms, living owners}.

local function renew(keys, args)
  begin(keys[1])
  local kept, living = {}, 0
  local found = leases_of(call('GET', keys[3]))
  found[args[1]] = now_ms + args[2]
  for owner, lives_to in pairs(found) do
    if lives_to > now_ms then kept[owner], living = lives_to, living + 1 end
  end
  call('SET', keys[3], pack(kept), 'PX', args[3])
  return {now_ms, living}
end
