package redirect

import (
	"fmt"
	"slices"
)

// nftCompare says how the kernel's table differs from the wanted one.
func nftCompare(want, have nftTable, exists bool) []string {
	if len(want.chains) == 0 {
		if exists {
			return []string{"table inet weft exists although nothing shall be captured"}
		}
		return nil
	}
	if !exists {
		return []string{"table inet weft is missing: nothing is captured"}
	}
	var drift []string
	for _, w := range want.chains {
		i := slices.IndexFunc(have.chains, func(c nftChain) bool { return c.name == w.name })
		if i < 0 {
			drift = append(drift, fmt.Sprintf("chain %s is missing", w.name))
			continue
		}
		h := have.chains[i]
		if a, b := w.header(), h.header(); a != b {
			drift = append(drift, fmt.Sprintf("chain %s is %q, want %q", w.name, b, a))
		}
		drift = append(drift, compareRules("chain "+w.name, lines(want, w), lines(have, h))...)
	}
	for _, h := range have.chains {
		if !slices.ContainsFunc(want.chains, func(c nftChain) bool { return c.name == h.name }) {
			drift = append(drift, fmt.Sprintf("chain %s does not belong here", h.name))
		}
	}
	return drift
}

func lines(t nftTable, c nftChain) []string {
	out := make([]string, len(c.rules))
	for i, r := range c.rules {
		out[i] = t.rule(r)
	}
	return out
}

// compareRules says which rules are missing, which are strangers, and, if there is neither, that their order differs.
func compareRules(where string, want, have []string) []string {
	if slices.Equal(want, have) {
		return nil
	}
	if len(have) == 0 && len(want) > 1 {
		return []string{where + " has lost all its rules"}
	}
	var drift []string
	rest := slices.Clone(have)
	for _, w := range want {
		if i := slices.Index(rest, w); i >= 0 {
			rest = slices.Delete(rest, i, i+1)
			continue
		}
		drift = append(drift, fmt.Sprintf("%s: missing rule: %s", where, w))
	}
	for _, h := range rest {
		drift = append(drift, fmt.Sprintf("%s: unexpected rule: %s", where, h))
	}
	if len(drift) == 0 {
		drift = append(drift, where+": the rules are all there, but in another order")
	}
	return drift
}
