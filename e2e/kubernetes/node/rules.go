package node

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
)

// Rules are the packet filter and address translation rules of a node, and its routing policy, one line each, as
// "ip nat POSTROUTING: -s 10.244.0.0/16 -j MASQUERADE". Counters are left out, and so is what kube-proxy keeps in step with Services.
type Rules []string

// ReadRules reads the rules of a running cluster's node.
func ReadRules(ctx context.Context, dir string) (Rules, error) {
	l := layout{dir}
	read := func(args ...string) (string, error) {
		out, err := exec.CommandContext(ctx, l.path("enter"), args...).Output()
		if err != nil {
			return "", fmt.Errorf("%s on the node: %w", strings.Join(args, " "), err)
		}
		return string(out), nil
	}
	var all Rules
	// What iptables made is in there too, where it is the newer iptables. The older one's rules are elsewhere.
	out, err := read("nft", "--stateless", "--numeric", "list", "ruleset")
	if err != nil {
		return nil, err
	}
	all = append(all, nftRules(out)...)
	for _, save := range []string{"iptables-legacy-save", "ip6tables-legacy-save"} {
		// Which is not on every machine, and without a kernel for it says so.
		if out, err := read(save); err == nil {
			all = append(all, savedRules(save, out)...)
		}
	}
	for _, family := range []string{"-4", "-6"} {
		out, err := read("ip", family, "rule", "list")
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(out) {
			all = append(all, "ip "+family+" rule "+strings.TrimSpace(line))
		}
	}
	return all, nil
}

// Changes are the differences of rules read later, "+ " and "- " before each line, in order.
func (r Rules) Changes(later Rules) []string {
	var changes []string
	count := map[string]int{}
	for _, line := range r {
		count[line]++
	}
	for _, line := range later {
		if count[line]--; count[line] < 0 {
			changes = append(changes, "+ "+line)
		}
	}
	for _, line := range slices.Backward(r) {
		if count[line]--; count[line] >= 0 {
			changes = append(changes, "- "+line)
		}
	}
	return changes
}

// nftRules are the lines of `nft list ruleset`, each with the table and chain that it stands in.
func nftRules(text string) Rules {
	var all Rules
	table, chain := "", ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		fields := strings.Fields(line)
		switch {
		case len(fields) == 0 || line == "}" || fields[0] == "#":
			continue
		case fields[0] == "table" && len(fields) > 2:
			table, chain = fields[1]+" "+fields[2], ""
			continue
		case slices.Contains([]string{"chain", "set", "map"}, fields[0]) && len(fields) > 1 && strings.HasSuffix(line, "{"):
			chain = fields[1]
		}
		if !ofServices(table, chain, line) {
			all = append(all, table+" "+chain+": "+line)
		}
	}
	return all
}

// savedRules are those of `iptables-legacy-save`.
func savedRules(from, text string) Rules {
	var all Rules
	table := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		name, isTable := strings.CutPrefix(line, "*")
		if isTable {
			table = name
			continue
		}
		line, _, _ = strings.Cut(line, " [") // a chain's counters
		if line == "" || line == "COMMIT" || strings.HasPrefix(line, "#") || ofServices(table, "", line) {
			continue
		}
		all = append(all, from+" "+table+": "+line)
	}
	return all
}

// ofServices says whether kube-proxy keeps the line in step with Services, or kubelet and kube-proxy made it for themselves, or portmap
// for the one pod whose host port it is (CNI-DN-..., gone a moment after the pod).
func ofServices(table, chain, line string) bool {
	return strings.Contains(chain+line, "CNI-DN-") || strings.HasSuffix(table, " kube-proxy") || strings.HasPrefix(chain, "KUBE-") || strings.Contains(line, "KUBE-")
}

// Text is for a file or an error.
func (r Rules) Text() string {
	var b bytes.Buffer
	for _, line := range r {
		fmt.Fprintln(&b, line)
	}
	return b.String()
}
