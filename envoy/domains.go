package envoy

import (
	"slices"
	"strings"

	"github.com/cespare/xxhash/v2"
)

// domains finds, in the hosts of one port, the one that Envoy would choose for a name. Eight bytes for each domain and no pointers:
// there is one for each port and class of clients, and a mesh may have tens of thousands of domains.
type domains struct {
	hosts  []*virtualHost
	refs   []domainRef         // sorted
	suffix map[string]wildcard // of "*.example.com" under "example.com"
	others []string            // "*", "*-x.example.com", "example.*": wildcards that nobody looks up by labels; the longest first
}

// A domainRef is 40 bits of a domain's hash, and the place of a host that has it.
type domainRef uint64

const placeBits = 24

func refTo(domain string, place int) domainRef {
	return domainRef(xxhash.Sum64String(lower(domain))&^(1<<placeBits-1) | uint64(place))
}

func (r domainRef) place() int      { return int(r & (1<<placeBits - 1)) }
func (r domainRef) hash() domainRef { return r >> placeBits }

// A wildcard belongs to the host at a place. It is shadowed when another host has a more specific domain under it.
type wildcard struct {
	place    int
	shadowed bool
}

// lower is how Envoy compares domains.
func lower(domain string) string { return strings.ToLower(domain) }

// indexDomains says which host owns each domain: the first that names it, because Envoy refuses a table with a domain in it twice.
// owners are the hosts with the domains that they keep, in their places; nil for a host that keeps none.
func indexDomains(hosts []*virtualHost) (x *domains, owners []*virtualHost) {
	x = &domains{hosts: hosts}
	n := 0
	for _, h := range hosts {
		n += len(h.domains)
	}
	x.refs = make([]domainRef, 0, n)
	for i, h := range hosts {
		for _, d := range h.domains {
			x.refs = append(x.refs, refTo(d, i))
		}
	}
	slices.Sort(x.refs)
	owners = hosts
	contested := map[int]bool{}
	for i := 1; i < len(x.refs); i++ {
		if x.refs[i].hash() == x.refs[i-1].hash() {
			contested[x.refs[i].place()] = true
		}
	}
	if len(contested) > 0 {
		owners = slices.Clone(hosts)
		for place := range contested {
			var kept []string
			for _, d := range hosts[place].domains {
				again := slices.ContainsFunc(kept, func(k string) bool { return strings.EqualFold(k, d) })
				if owner, _ := x.exact(d); owner == place && !again {
					kept = append(kept, d)
				}
			}
			owners[place] = hosts[place].with(kept)
		}
	}
	return x, owners
}

// exact finds the first host that has the very domain.
func (x *domains) exact(domain string) (place int, found bool) {
	first := refTo(domain, 0)
	i, _ := slices.BinarySearch(x.refs, first)
	for ; i < len(x.refs) && x.refs[i].hash() == first.hash(); i++ {
		place := x.refs[i].place()
		if slices.ContainsFunc(x.hosts[place].domains, func(d string) bool { return strings.EqualFold(d, domain) }) {
			return place, true
		}
	}
	return 0, false
}

// indexWildcards makes lookup possible, and returns what is left of owners for proxies that ask host by host. Those would never ask for
// a name that some wildcard which they have covers already. So a wildcard is theirs only as long as nobody else has a name under it;
// else its host comes under each asked name by itself.
func (x *domains) indexWildcards(owners []*virtualHost) []*virtualHost {
	x.suffix = map[string]wildcard{}
	var shared []int // places of hosts with wildcards
	for i, h := range owners {
		if h == nil {
			continue
		}
		for _, d := range h.domains {
			if !strings.Contains(d, "*") {
				continue
			}
			if len(shared) == 0 || shared[len(shared)-1] != i {
				shared = append(shared, i)
			}
			if rest, labels := strings.CutPrefix(lower(d), "*."); labels {
				x.suffix[rest] = wildcard{place: i}
			} else {
				x.others = append(x.others, lower(d))
			}
		}
	}
	if len(shared) == 0 {
		return owners
	}
	slices.SortFunc(x.others, func(a, b string) int {
		if len(a) != len(b) {
			return len(b) - len(a)
		}
		return strings.Compare(a, b)
	})
	for i, h := range x.hosts {
		for _, d := range h.domains {
			x.shadow(strings.TrimPrefix(lower(d), "*."), i)
		}
	}
	out := slices.Clone(owners)
	for _, i := range shared {
		out[i] = owners[i].with(slices.DeleteFunc(slices.Clone(owners[i].domains), func(d string) bool {
			if !strings.Contains(d, "*") {
				return false
			}
			rest, labels := strings.CutPrefix(lower(d), "*.")
			return !labels || x.suffix[rest].shadowed
		}))
	}
	return out
}

// shadow marks the wildcards of others that cover a host's name.
func (x *domains) shadow(name string, place int) {
	for rest := parent(name); rest != ""; rest = parent(rest) {
		if w, ok := x.suffix[rest]; ok && w.place != place && !w.shadowed {
			x.suffix[rest] = wildcard{w.place, true}
		}
	}
}

// parent is a name without its first label.
func parent(name string) string {
	_, rest, _ := strings.Cut(name, ".")
	return rest
}

// lookup finds the host that Envoy would choose if it had all: an exact domain, the longest "*suffix", the longest "prefix*", "*".
// alone says that the name's owner must come under this name by itself, see indexWildcards.
func (x *domains) lookup(name string) (place int, alone, found bool) {
	if place, found = x.exact(name); found {
		return place, false, true
	}
	best := 0 // length of the wildcard
	for rest := parent(name); rest != ""; rest = parent(rest) {
		if w, ok := x.suffix[rest]; ok && len(rest)+2 <= len(name) {
			place, alone, found, best = w.place, w.shadowed, true, len(rest)+2
			break
		}
	}
	for _, pattern := range x.others {
		if suffix, ok := strings.CutPrefix(pattern, "*"); ok && suffix != "" && len(pattern) > best && len(name) >= len(pattern) && strings.HasSuffix(name, suffix) {
			place, _ = x.exact(pattern)
			return place, true, true
		}
	}
	if found {
		return place, alone, true
	}
	for _, pattern := range x.others {
		if prefix, ok := strings.CutSuffix(pattern, "*"); ok && len(name) >= len(pattern) && strings.HasPrefix(name, prefix) {
			place, _ = x.exact(pattern) // "*" is the shortest of them
			return place, true, true
		}
	}
	return 0, false, false
}
