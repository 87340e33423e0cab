package redirect

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// iptables is the backend for kernels without nftables. It starts two processes a family: one to read, one to write.
type iptables struct {
	prefix string // "iptables", "iptables-legacy", "iptables-nft"; empty: not looked up yet
}

func newIPTables() *iptables { return &iptables{} }

func (*iptables) Name() string { return IPTables }

// errNoIPTables says that the host has no usable iptables.
var errNoIPTables = errors.New("no working iptables-save and iptables-restore found on PATH (tried iptables, iptables-legacy, iptables-nft); install iptables on the node, or use a kernel with nftables")

// find picks the iptables flavour. The host's own choice comes first; it may be the one on top of nftables, which cannot work in a kernel
// without it, so each is tried.
func (b *iptables) find() error {
	if b.prefix != "" {
		return nil
	}
	var tried []string
	for _, p := range []string{"iptables", "iptables-legacy", "iptables-nft"} {
		if _, err := exec.LookPath(p + "-restore"); err != nil {
			continue
		}
		if _, err := run(nil, p+"-save", "-t", "nat"); err != nil {
			tried = append(tried, err.Error())
			continue
		}
		b.prefix = p
		return nil
	}
	if len(tried) > 0 {
		return fmt.Errorf("%w: %s", errNoIPTables, strings.Join(tried, "; "))
	}
	return errNoIPTables
}

// command is the program for a family: iptables-legacy-save, ip6tables-legacy-save.
func (b *iptables) command(f family, verb string) string {
	p := b.prefix
	if f == family6 {
		p = "ip6" + strings.TrimPrefix(p, "ip")
	}
	return p + "-" + verb
}

func run(stdin []byte, name string, args ...string) ([]byte, error) {
	cmd := exec.Command(name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.Bytes(), nil
}

var bothFamilies = []family{family4, family6}

func (b *iptables) Apply(s Spec) error {
	if err := s.Validate(); err != nil {
		return err
	}
	if err := b.find(); err != nil {
		return err
	}
	if err := sameUserNamespace(); err != nil {
		return err
	}
	if err := addRoutes(routes(s)); err != nil {
		return err
	}
	for _, f := range bothFamilies {
		if err := b.write(f, ipCompileSpec(s, f)); err != nil {
			return err
		}
	}
	return removeOtherRoutes(routes(s))
}

// errUserNamespace: the kernel lets iptables name socket owners only from inside the user namespace that the network namespace belongs to.
var errUserNamespace = errors.New("iptables cannot redirect a pod with a user namespace of its own (hostUsers: false); only the nftables backend can, so use a kernel with nftables, or hostUsers: true")

// sameUserNamespace fails when the network namespace of this thread belongs to another user namespace.
func sameUserNamespace() error {
	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer ns.Close()
	owner, err := unix.IoctlRetInt(int(ns.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		return fmt.Errorf("find the user namespace of the network namespace: %w", err)
	}
	defer unix.Close(owner)
	var theirs, ours unix.Stat_t
	if err := errors.Join(unix.Fstat(owner, &theirs), unix.Stat("/proc/thread-self/ns/user", &ours)); err != nil {
		return fmt.Errorf("compare user namespaces: %w", err)
	}
	if theirs.Dev != ours.Dev || theirs.Ino != ours.Ino {
		return errUserNamespace
	}
	return nil
}

// ipCompileSpec is empty for a family that the Spec leaves alone.
func ipCompileSpec(s Spec, f family) []ipTable {
	if f == family4 && !s.IPv4 || f == family6 && !s.IPv6 {
		return ipCompile(nil, f)
	}
	return ipCompile(compile(s), f)
}

// write makes a family's tables hold exactly these chains of ours, and nothing else of ours.
func (b *iptables) write(f family, tables []ipTable) error {
	have, err := b.read(f)
	if err != nil {
		if f == family6 && len(tables) > 0 && noTables(tables) {
			return nil // a host without ip6tables, and nothing wanted from it
		}
		return err
	}
	var in strings.Builder
	for i, t := range tables {
		h := have[i]
		if len(t.chains)+len(h.chains)+len(h.jumps) == 0 {
			continue
		}
		fmt.Fprintf(&in, "*%s\n", t.name)
		// Naming a chain creates or empties it; the rest of the table stays because of --noflush.
		for _, c := range t.chains {
			fmt.Fprintf(&in, ":%s - [0:0]\n", c.name)
		}
		stale := slices.DeleteFunc(slices.Clone(h.chains), func(c ipChain) bool {
			return slices.ContainsFunc(t.chains, func(w ipChain) bool { return w.name == c.name })
		})
		for _, c := range stale {
			fmt.Fprintf(&in, ":%s - [0:0]\n", c.name)
		}
		for _, j := range h.jumps {
			fmt.Fprintf(&in, "-D %s\n", j)
		}
		// Ours go first, so that no earlier rule can let a connection around the proxy.
		position := map[string]int{}
		for _, j := range t.jumps {
			position[j[0]]++
			fmt.Fprintf(&in, "-I %s %d %s\n", j[0], position[j[0]], j[1:])
		}
		for _, c := range t.chains {
			for _, r := range c.rules {
				fmt.Fprintf(&in, "-A %s\n", r)
			}
		}
		for _, c := range stale {
			fmt.Fprintf(&in, "-X %s\n", c.name)
		}
		in.WriteString("COMMIT\n")
	}
	if in.Len() == 0 {
		return nil
	}
	_, err = run([]byte(in.String()), b.command(f, "restore"), "--noflush", "-w", "5")
	return err
}

func noTables(tables []ipTable) bool {
	return !slices.ContainsFunc(tables, func(t ipTable) bool { return len(t.chains) > 0 })
}

// read gives what a family has of ours, table by table.
func (b *iptables) read(f family) ([]ipTable, error) {
	tables := make([]ipTable, len(ipTableNames))
	for i, name := range ipTableNames {
		text, err := run(nil, b.command(f, "save"), "-t", name)
		if err != nil {
			return nil, err
		}
		tables[i] = ipParse(name, string(text))
	}
	return tables, nil
}

// ipParse reads iptables-save's output for one table and keeps what is ours: chains by name, and the rules elsewhere that lead to them.
func ipParse(name, text string) ipTable {
	t := ipTable{name: name}
	index := map[string]int{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, ":"):
			if c, _, _ := strings.Cut(line[1:], " "); isOurs(c) {
				index[c] = len(t.chains)
				t.chains = append(t.chains, ipChain{name: c})
			}
		case strings.HasPrefix(line, "-A "):
			r := ipWords(line[len("-A "):])
			if len(r) == 0 {
				continue
			}
			if i, ok := index[r[0]]; ok {
				t.chains[i].rules = append(t.chains[i].rules, r)
			} else if len(r) > 2 && isOurs(r[len(r)-1]) {
				t.jumps = append(t.jumps, r)
			}
		}
	}
	return t
}

func isOurs(chain string) bool {
	return slices.ContainsFunc(allChains, func(n string) bool { return ipChainName(n) == chain })
}

// ipWords splits a line as the shell would, for the quotes that iptables-save writes.
func ipWords(line string) ipRule {
	var words ipRule
	var word strings.Builder
	quoted, some := false, false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case c == '\\' && quoted && i+1 < len(line):
			i++
			word.WriteByte(line[i])
		case c == '"':
			quoted, some = !quoted, true
		case c == ' ' && !quoted:
			if some {
				words = append(words, word.String())
			}
			word.Reset()
			some = false
		default:
			word.WriteByte(c)
			some = true
		}
	}
	if some {
		words = append(words, word.String())
	}
	return words
}

// present says whether iptables holds anything of ours.
func (b *iptables) present() bool {
	if b.find() != nil {
		return false
	}
	for _, f := range bothFamilies {
		tables, err := b.read(f)
		if err == nil && !noTables(tables) {
			return true
		}
	}
	return false
}

func (b *iptables) Verify(s Spec) ([]string, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	if err := b.find(); err != nil {
		return nil, err
	}
	drift, err := verifyRoutes(routes(s))
	if err != nil {
		return nil, err
	}
	for _, f := range bothFamilies {
		want := ipCompileSpec(s, f)
		have, err := b.read(f)
		if err != nil {
			if f == family6 && noTables(want) {
				continue
			}
			return nil, err
		}
		label := "iptables"
		if f == family6 {
			label = "ip6tables"
		}
		for i, w := range want {
			drift = append(drift, ipCompare(label+" table "+w.name, w, have[i])...)
		}
	}
	return drift, nil
}

func ipCompare(where string, want, have ipTable) []string {
	drift := compareRules(where, ruleLines(want.jumps), ruleLines(have.jumps))
	for _, w := range want.chains {
		i := slices.IndexFunc(have.chains, func(c ipChain) bool { return c.name == w.name })
		if i < 0 {
			drift = append(drift, fmt.Sprintf("%s: chain %s is missing", where, w.name))
			continue
		}
		drift = append(drift, compareRules(where+" chain "+w.name, ruleLines(w.rules), ruleLines(have.chains[i].rules))...)
	}
	for _, h := range have.chains {
		if !slices.ContainsFunc(want.chains, func(c ipChain) bool { return c.name == h.name }) {
			drift = append(drift, fmt.Sprintf("%s: chain %s does not belong here", where, h.name))
		}
	}
	return drift
}

func ruleLines(rules []ipRule) []string {
	out := make([]string, len(rules))
	for i, r := range rules {
		out[i] = r.String()
	}
	return out
}

func (b *iptables) Remove() error {
	if err := b.find(); err != nil {
		return err
	}
	var errs []error
	for _, f := range bothFamilies {
		errs = append(errs, b.write(f, ipCompile(nil, f)))
	}
	return errors.Join(append(errs, removeOtherRoutes(nil))...)
}

func (b *iptables) Text(s Spec) (string, error) {
	if err := s.Validate(); err != nil {
		return "", err
	}
	text := ""
	for _, f := range bothFamilies {
		if t := ipText(ipCompileSpec(s, f)); t != "" {
			label := "# iptables-save"
			if f == family6 {
				label = "# ip6tables-save"
			}
			text += label + "\n" + t
		}
	}
	return text + routesText(s), nil
}
