package node

import (
	"slices"
	"testing"
)

const nftBefore = `table ip kube-proxy {
	chain services {
		ip daddr 10.96.0.1 tcp dport 443 dnat to 10.99.0.2:6443
	}
}
table ip nat {
	chain POSTROUTING {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 10.244.0.0/16 masquerade
	}
	chain KUBE-SERVICES {
		ip daddr 10.96.0.1 return
	}
}
`

func TestOnlyServicesMayChangeTheNodesRules(t *testing.T) {
	before := nftRules(nftBefore)
	if len(before) != 3 {
		t.Fatalf("3 lines are not kube-proxy's, read %q", before)
	}
	if changes := before.Changes(nftRules(nftBefore + "table ip kube-proxy {\n\tchain x {\n\t\treturn\n\t}\n}\n")); len(changes) > 0 {
		t.Errorf("a Service came: %q", changes)
	}
	after := nftRules("table ip nat {\n chain POSTROUTING {\n type nat hook postrouting priority srcnat; policy accept;\n tcp dport 80 redirect to :15001\n }\n}\n")
	want := []string{"+ ip nat POSTROUTING: tcp dport 80 redirect to :15001", "- ip nat POSTROUTING: ip saddr 10.244.0.0/16 masquerade"}
	if got := before.Changes(after); !slices.Equal(got, want) {
		t.Errorf("a rule came and one went:\n%q, want\n%q", got, want)
	}
	saved := savedRules("iptables-legacy-save", "*nat\n:POSTROUTING ACCEPT [3:180]\n:KUBE-X - [0:0]\n-A POSTROUTING -s 10.0.0.0/8 -j MASQUERADE\nCOMMIT\n")
	if changes := saved.Changes(savedRules("iptables-legacy-save", "*nat\n:POSTROUTING ACCEPT [9:999]\n-A POSTROUTING -s 10.0.0.0/8 -j MASQUERADE\nCOMMIT\n")); len(changes) > 0 {
		t.Errorf("packets were counted: %q", changes)
	}
}
