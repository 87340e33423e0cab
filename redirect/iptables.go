package redirect

import (
	"fmt"
	"strconv"
	"strings"
)

// This file spells chains in the syntax of iptables-save and iptables-restore. The words come in the order in which
// iptables-save prints them, because Verify compares what it prints with what we wrote.

// ipTable is what one family has in one of iptables' tables.
type ipTable struct {
	name   string // "nat" or "mangle"
	jumps  []ipRule
	chains []ipChain
}

type ipChain struct {
	name  string
	rules []ipRule
}

// ipRule is the words after "-A".
type ipRule []string

func (r ipRule) String() string {
	words := make([]string, len(r))
	for i, w := range r {
		if strings.ContainsAny(w, " \"") {
			w = `"` + strings.ReplaceAll(w, `"`, `\"`) + `"`
		}
		words[i] = w
	}
	return strings.Join(words, " ")
}

// ipTableNames are the tables in which we may have chains.
var ipTableNames = []string{"mangle", "nat"}

func ipChainName(name string) string { return "WEFT_" + strings.ToUpper(name) }

// ipCompile spells the chains that concern a family.
func ipCompile(chains []chain, f family) []ipTable {
	var tables []ipTable
	for _, name := range ipTableNames {
		t := ipTable{name: name}
		for _, c := range chains {
			if c.table != name {
				continue
			}
			n := ipChain{name: ipChainName(c.name)}
			if c.hook != "" {
				t.jumps = append(t.jumps, ipRule{strings.ToUpper(c.hook), "-j", n.name})
			}
			for _, r := range c.rules {
				if r.family()&f != 0 {
					n.rules = append(n.rules, ipRules(n.name, r, f)...)
				}
			}
			t.chains = append(t.chains, n)
		}
		tables = append(tables, t)
	}
	return tables
}

// ipRules spells one rule; a list that iptables cannot match at once makes several.
func ipRules(chain string, r rule, f family) []ipRule {
	// Alternatives for each place: addresses first, then interfaces, then the rest, as iptables-save prints.
	places := [][]ipRule{}
	for _, kinds := range [][]matchKind{{onSource}, {onDestination}, {onIn}, {onOut}, {onTCP, onUDP, onReset}, {onMark, onConnMark, onUID, onGID, onLocal, onState, onAssured, onOriginal, onOriginalTo, onTransparent, onListener}} {
		for _, m := range r.match {
			for _, k := range kinds {
				if m.kind == k {
					places = append(places, ipMatch(m))
				}
			}
		}
	}
	all := []ipRule{{chain}}
	for _, alternatives := range places {
		var next []ipRule
		for _, head := range all {
			for _, tail := range alternatives {
				next = append(next, append(append(ipRule{}, head...), tail...))
			}
		}
		all = next
	}
	var out []ipRule
	for _, head := range all {
		for _, a := range r.do {
			line := append(ipRule{}, head...)
			line = append(line, "-m", "comment", "--comment", r.comment)
			out = append(out, append(line, ipAction(a, f)...))
		}
	}
	return out
}

// ipMatch gives the words for a match, in as many alternatives as iptables needs.
func ipMatch(m match) []ipRule {
	not := func(words ...string) []ipRule {
		if m.not {
			words = append([]string{"!"}, words...)
		}
		return []ipRule{words}
	}
	module := func(module string, words ...string) []ipRule {
		return []ipRule{append(ipRule{"-m", module}, not(words...)[0]...)}
	}
	switch m.kind {
	case onIn:
		return not("-i", ipInterface(m.name))
	case onOut:
		return not("-o", ipInterface(m.name))
	case onSource:
		return not("-s", m.cidrs[0].String())
	case onDestination:
		var out []ipRule
		for _, c := range m.cidrs {
			if c.Bits() == 0 {
				out = append(out, ipRule{}) // iptables prints a range of everything as nothing
				continue
			}
			out = append(out, not("-d", c.String())...)
		}
		return out
	case onTCP:
		return ipPorts("tcp", m)
	case onUDP:
		return ipPorts("udp", m)
	case onReset:
		return []ipRule{append(ipRule{"-p", "tcp", "-m", "tcp"}, not("--tcp-flags", "RST", "RST")[0]...)}
	case onUID:
		return ipOwners("--uid-owner", m.ids)
	case onGID:
		return ipOwners("--gid-owner", m.ids)
	case onLocal:
		return module("addrtype", "--dst-type", "LOCAL")
	case onState:
		states := "INVALID"
		if m.value == ctEstRelated {
			states = "RELATED,ESTABLISHED"
		}
		return module("conntrack", "--ctstate", states)
	case onAssured:
		return module("conntrack", "--ctstatus", "ASSURED")
	case onOriginal:
		direction := "ORIGINAL"
		if m.not {
			direction = "REPLY" // there is no "!" for it
		}
		return []ipRule{{"-m", "conntrack", "--ctdir", direction}}
	case onOriginalTo:
		return module("conntrack", "--ctorigdstport", strconv.Itoa(int(m.ports[0])))
	case onMark:
		return module("mark", "--mark", fmt.Sprintf("%#x", m.value))
	case onConnMark:
		return module("connmark", "--mark", fmt.Sprintf("%#x", m.value))
	case onTransparent:
		return module("socket", "--transparent")
	case onListener:
		return module("socket", "--nowildcard") // iptables leaves out sockets that are bound to all addresses unless told so
	}
	return []ipRule{{}}
}

// ipPorts: multiport takes up to 15 ports.
func ipPorts(proto string, m match) []ipRule {
	switch len(m.ports) {
	case 0:
		return []ipRule{{"-p", proto}}
	case 1:
		return []ipRule{{"-p", proto, "-m", proto, "--dport", strconv.Itoa(int(m.ports[0]))}}
	}
	var out []ipRule
	for rest := m.ports; len(rest) > 0; {
		n := min(15, len(rest))
		words := make([]string, n)
		for i, p := range rest[:n] {
			words[i] = strconv.Itoa(int(p))
		}
		rest = rest[n:]
		out = append(out, ipRule{"-p", proto, "-m", "multiport", "--dports", strings.Join(words, ",")})
	}
	return out
}

func ipOwners(option string, ids []uint32) []ipRule {
	var out []ipRule
	for _, id := range ids {
		out = append(out, ipRule{"-m", "owner", option, strconv.FormatUint(uint64(id), 10)})
	}
	return out
}

func ipInterface(name string) string {
	if stem, wild := interfaceStem(name); wild {
		return stem + "+"
	}
	return name
}

func ipAction(a action, f family) ipRule {
	mask := fmt.Sprintf("%#x", uint32(allMarkBits))
	switch a.kind {
	case doAccept:
		return ipRule{"-j", "ACCEPT"}
	case doDrop:
		return ipRule{"-j", "DROP"}
	case doGoto:
		return ipRule{"-g", ipChainName(a.chain)}
	case doRedirect:
		return ipRule{"-j", "REDIRECT", "--to-ports", strconv.Itoa(int(a.port))}
	case doTProxy:
		any := "0.0.0.0"
		if f == family6 {
			any = "::"
		}
		return ipRule{"-j", "TPROXY", "--on-port", strconv.Itoa(int(a.port)), "--on-ip", any, "--tproxy-mark", fmt.Sprintf("%#x/%s", markTProxy, mask)}
	case doSetMark:
		return ipRule{"-j", "MARK", "--set-xmark", fmt.Sprintf("%#x/%s", a.value, mask)}
	case doSetConnMark:
		return ipRule{"-j", "CONNMARK", "--set-xmark", fmt.Sprintf("%#x/%s", a.value, mask)}
	case doMarkFromConn:
		return ipRule{"-j", "CONNMARK", "--restore-mark", "--nfmask", mask, "--ctmask", mask}
	}
	return ipRule{"-j", "RETURN"}
}

// ipText writes tables as iptables-save would.
func ipText(tables []ipTable) string {
	var b strings.Builder
	for _, t := range tables {
		if len(t.chains) == 0 {
			continue
		}
		fmt.Fprintf(&b, "*%s\n", t.name)
		for _, c := range t.chains {
			fmt.Fprintf(&b, ":%s - [0:0]\n", c.name)
		}
		for _, j := range t.jumps {
			fmt.Fprintf(&b, "-A %s\n", j)
		}
		for _, c := range t.chains {
			for _, r := range c.rules {
				fmt.Fprintf(&b, "-A %s\n", r)
			}
		}
		b.WriteString("COMMIT\n")
	}
	return b.String()
}
