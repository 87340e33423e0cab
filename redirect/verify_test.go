package redirect

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/e2e/kit"
	"github.com/weft-mesh/weft/redirect/nstest"
)

// everything is the Spec of testdata that uses every field.
func everything(t *testing.T) Spec {
	t.Helper()
	s, ok := specs(t)["everything"]
	if !ok {
		t.Fatal("testdata/everything is gone")
	}
	return s
}

func TestVerifySaysInWordsWhatSomebodyChanged(t *testing.T) {
	kit.Root(t)
	s := everything(t)
	for _, c := range []struct {
		name   string
		change func(t *nftTable)
		want   string
	}{
		{"nothing", func(*nftTable) {}, ""},
		{"table deleted", func(t *nftTable) { t.chains = nil }, "table inet weft is missing: nothing is captured"},
		{"chain emptied", func(t *nftTable) { t.chains[2].rules = nil }, "chain output has lost all its rules"},
		{"rule deleted", func(t *nftTable) { t.chains[3].rules = t.chains[3].rules[:2] }, `chain to_inbound: missing rule: meta l4proto tcp redirect to :15006 comment "all other inbound ports"`},
		{"gate's listener forgotten", func(t *nftTable) { t.chains[1].rules = slices.Delete(t.chains[1].rules, 1, 2) }, `chain inbound: missing rule: tcp dport 15099 fib daddr type local socket transparent 0 return comment`},
		{"gate's silence broken", func(t *nftTable) { t.chains[5].rules = nil }, `chain refusal: missing rule: oifname != "lo" tcp flags rst ct direction != original ct original proto-dst 15099 ct status ! assured drop comment`},
		{"gate's silence taken away", func(t *nftTable) { t.chains = t.chains[:5] }, "chain refusal is missing"},
		{"rule added", func(t *nftTable) {
			r := compile(Default())[0].rules[0]
			t.chains[4].rules = append(t.chains[4].rules, nftCompile([]chain{{rules: []rule{r}}}).chains[0].rules...)
		}, `chain to_outbound: unexpected rule: iifname "lo" return`},
		{"order changed", func(t *nftTable) {
			r := t.chains[2].rules
			r[0], r[5] = r[5], r[0]
		}, "chain output: the rules are all there, but in another order"},
		{"chain renamed", func(t *nftTable) { t.chains[0].name = "other" }, "chain invalid is missing"},
		{"strange chain", func(t *nftTable) { t.chains = append(t.chains, nftChain{name: "stranger"}) }, "chain stranger does not belong here"},
		{"other hook", func(t *nftTable) { t.chains[0].hook = unix.NF_INET_LOCAL_OUT }, "chain invalid is \"type filter hook output priority mangle - 1; policy accept;\", want"},
		{"other priority", func(t *nftTable) { t.chains[2].priority = -90 }, "chain output is \"type nat hook output priority -90; policy accept;\", want"},
		{"set element removed", func(t *nftTable) {
			for name, set := range t.sets {
				if set.interval {
					set.elements = set.elements[2:]
					t.sets[name] = set
				}
			}
		}, "missing rule: ip daddr { 10.98.0.0/16, 192.168.0.0/16 } return"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ns := nstest.New(t)
			ns.Do(func() {
				if err := (nft{}).Apply(s); err != nil {
					t.Error(err)
					return
				}
				table := nftCompile(compile(s))
				c.change(&table)
				if c.name != "nothing" {
					if _, err := nftWrite(table); err != nil {
						t.Error(err)
						return
					}
				}
				drift, err := nft{}.Verify(s)
				all := strings.Join(drift, "\n")
				if err != nil || c.want == "" && all != "" || !strings.Contains(all, c.want) {
					t.Errorf("verify: %v, %q, want %q", err, all, c.want)
				}
				if err := (nft{}).Apply(s); err != nil {
					t.Error(err)
				}
				if drift, err := (nft{}).Verify(s); err != nil || len(drift) > 0 {
					t.Errorf("after applying again: %v, %q", err, drift)
				}
			})
		})
	}
}

func TestRulesCanBeReadWhileSomebodyTakesThemAway(t *testing.T) {
	kit.Root(t)
	ns, s := nstest.New(t), everything(t)
	done := make(chan error, 1)
	go func() {
		done <- InNetNS(ns.Path, func() error {
			for range 100 {
				if err := errors.Join(nft{}.Apply(s), nft{}.Remove()); err != nil {
					return err
				}
			}
			return nil
		})
	}()
	ns.Do(func() {
		for {
			select {
			case err := <-done:
				if err != nil {
					t.Errorf("apply and remove: %v", err)
				}
				return
			default:
			}
			if _, err := (nft{}).Verify(s); err != nil {
				t.Errorf("verify: %v", err)
				<-done
				return
			}
		}
	})
}

func TestVerifySeesLostRoutesAndAddresses(t *testing.T) {
	kit.Root(t)
	s := Default()
	s.Mode = TProxy
	n := newTestNet(t, true)
	n.pod.Do(func() {
		if err := (nft{}).Apply(s); err != nil {
			t.Error(err)
			return
		}
		c, err := dialRoute()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		if err := removeRoutes(c, everyRoute()); err != nil {
			t.Error(err)
		}
		drift, err := nft{}.Verify(s)
		want := []string{"missing address ::6/128 on lo", "missing ip rule: fwmark 0x539 lookup 133", "missing ip route: local default dev lo table 133",
			"missing ip -6 rule: fwmark 0x539 lookup 133", "missing ip -6 route: local default dev lo table 133"}
		if err != nil || fmt.Sprint(drift) != fmt.Sprint(want) {
			t.Errorf("verify: %v, %q, want %q", err, drift, want)
		}
	})
}

// every Spec is applied over every other kind, and removed: what a former one left must not stay.
func TestANewSpecLeavesNothingOfTheFormerOne(t *testing.T) {
	kit.Root(t)
	all := specs(t)
	order := []string{"everything", "default", "tproxy-dns-drop-invalid", "none", "tproxy", "tproxy-gate", "default", "gate", "ipv6-only", "tproxy-ipv4-only", "tproxy-interfaces", "many-ports", "many-ports"}
	for _, b := range backends(t) {
		t.Run(b.Name(), func(t *testing.T) {
			n := newTestNet(t, false)
			n.pod.Do(func() {
				before := routing(t)
				for _, name := range order {
					if err := b.Apply(all[name]); err != nil {
						t.Errorf("apply %s: %v", name, err)
					}
					if drift, err := b.Verify(all[name]); err != nil || len(drift) > 0 {
						t.Errorf("%s over the former one: %v, %q", name, err, drift)
					}
				}
				for range 2 {
					if err := b.Remove(); err != nil {
						t.Errorf("remove: %v", err)
					}
				}
				if drift, err := b.Verify(all["none"]); err != nil || len(drift) > 0 {
					t.Errorf("after Remove: %v, %q", err, drift)
				}
				if after := routing(t); after != before {
					t.Errorf("addresses and routes after Remove:\n%s\nbefore:\n%s", after, before)
				}
			})
		})
	}
}

// routing is what the namespace has of addresses, rules and routes.
func routing(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		t.Error(err)
	}
	for _, a := range addrs {
		if !a.IP.IsLinkLocalUnicast() { // these come by themselves, a while after their interface
			fmt.Fprintln(&b, a.IPNet)
		}
	}
	for _, f := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rules, err := netlink.RuleList(f)
		if err != nil {
			t.Error(err)
		}
		for _, r := range rules {
			fmt.Fprintln(&b, r)
		}
		routes, err := netlink.RouteListFiltered(f, &netlink.Route{Table: tableTProxy}, netlink.RT_FILTER_TABLE)
		if err != nil {
			t.Error(err)
		}
		fmt.Fprintln(&b, routes)
	}
	return b.String()
}

func TestOtherPeoplesRulesStay(t *testing.T) {
	kit.Root(t)
	kit.Netfilter(t)
	ns := nstest.New(t)
	ip := newIPTables()
	ns.Do(func() {
		if err := ip.find(); err != nil {
			t.Error(err)
			return
		}
		if _, err := run([]byte("*nat\n-A OUTPUT -d 192.0.2.1/32 -j ACCEPT\n-A PREROUTING -i x0 -j ACCEPT\nCOMMIT\n"), ip.command(family4, "restore"), "--noflush"); err != nil {
			t.Error(err)
		}
		for range 2 {
			if err := ip.Apply(everything(t)); err != nil {
				t.Error(err)
			}
		}
		text, err := run(nil, ip.command(family4, "save"), "-t", "nat")
		if err != nil {
			t.Error(err)
		}
		ours, theirs := strings.Index(string(text), "-A OUTPUT -j WEFT_OUTPUT"), strings.Index(string(text), "-A OUTPUT -d 192.0.2.1/32 -j ACCEPT")
		if ours < 0 || theirs < 0 || ours > theirs {
			t.Errorf("our jump must come first, and the others' rule stay:\n%s", text)
		}
		if strings.Count(string(text), "-j WEFT_OUTPUT") != 1 {
			t.Errorf("applied twice, the jump is there more than once:\n%s", text)
		}
		if err := ip.Remove(); err != nil {
			t.Error(err)
		}
		if text, err = run(nil, ip.command(family4, "save"), "-t", "nat"); err != nil || strings.Contains(string(text), "WEFT") || !strings.Contains(string(text), "192.0.2.1") || !strings.Contains(string(text), "x0") {
			t.Errorf("after Remove: %v\n%s", err, text)
		}
	})
}

func TestIptablesVerifyNamesWhatWasChanged(t *testing.T) {
	kit.Root(t)
	kit.Netfilter(t)
	ns := nstest.New(t)
	ip := newIPTables()
	s := everything(t)
	ns.Do(func() {
		if drift, err := ip.Verify(s); err != nil || !strings.Contains(fmt.Sprint(drift), "chain WEFT_OUTPUT is missing") {
			t.Errorf("verify of nothing: %v, %q", err, drift)
		}
		if err := ip.Apply(s); err != nil {
			t.Error(err)
		}
		if _, err := run([]byte("*nat\n-D OUTPUT -j WEFT_OUTPUT\n-F WEFT_TO_INBOUND\nCOMMIT\n"), ip.command(family6, "restore"), "--noflush"); err != nil {
			t.Error(err)
		}
		drift, err := ip.Verify(s)
		text := fmt.Sprint(drift)
		if err != nil || !strings.Contains(text, "ip6tables table nat: missing rule: OUTPUT -j WEFT_OUTPUT") || !strings.Contains(text, "ip6tables table nat chain WEFT_TO_INBOUND has lost all its rules") || len(drift) != 2 {
			t.Errorf("verify: %v, %q", err, drift)
		}
	})
}

func TestAutoUsesNFTablesWhereTheKernelHasIt(t *testing.T) {
	kit.Root(t)
	b, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	nstest.New(t).Do(func() {
		if err := b.Apply(Default()); err != nil {
			t.Error(err)
		}
		if drift, err := (nft{}).Verify(Default()); err != nil || len(drift) > 0 {
			t.Errorf("nftables has %v, %q", err, drift)
		}
		if drift, err := b.Verify(Default()); err != nil || len(drift) > 0 {
			t.Errorf("auto says %v, %q", err, drift)
		}
		if err := b.Remove(); err != nil {
			t.Error(err)
		}
	})
}

func TestAutoFindsRulesThatIptablesWrote(t *testing.T) {
	kit.Root(t)
	kit.Netfilter(t)
	nstest.New(t).Do(func() {
		// As Apply leaves it on a kernel that lacks something the nftables rules need.
		if err := newIPTables().Apply(Default()); err != nil {
			t.Error(err)
		}
		if drift, err := (auto{}).Verify(Default()); err != nil || len(drift) > 0 {
			t.Errorf("auto says %v, %q", err, drift)
		}
		if err := (auto{}).Remove(); err != nil {
			t.Error(err)
		}
		if newIPTables().present() {
			t.Error("iptables rules are still there after Remove")
		}
	})
}

func TestAKernelWithoutNFTablesIsRecognised(t *testing.T) {
	for err, want := range map[error]bool{unix.EOPNOTSUPP: true, unix.ENOENT: true, unix.EPROTONOSUPPORT: true, unix.EPERM: false, unix.EINVAL: false} {
		if got := lacksNFTables(fmt.Errorf("nftables: add chain output: %w", err)); got != want {
			t.Errorf("%v: %v, want %v", err, got, want)
		}
	}
	if _, err := Open("ebpf"); err == nil || !strings.Contains(err.Error(), "want auto, nftables or iptables") {
		t.Errorf("an unknown backend: %v", err)
	}
	t.Setenv("PATH", t.TempDir())
	if err := newIPTables().Apply(Default()); err == nil || !strings.Contains(err.Error(), "install iptables on the node") {
		t.Errorf("no iptables: %v", err)
	}
}

func TestThousandsOfRangesFitIntoOneTransaction(t *testing.T) {
	kit.Root(t)
	s := Default()
	for i := range 3000 {
		s.ExcludeOutboundCIDRs = append(s.ExcludeOutboundCIDRs,
			netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i >> 7), byte(i << 1), 0}), 24),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 1, byte(i >> 7), byte(i << 1)}), 32))
	}
	for i := range 5000 {
		s.ExcludeInboundPorts = append(s.ExcludeInboundPorts, uint16(20000+2*i))
	}
	nstest.New(t).Do(func() {
		if err := (nft{}).Apply(s); err != nil {
			t.Error(err)
		}
		if drift, err := (nft{}).Verify(s); err != nil || len(drift) > 0 {
			t.Errorf("verify: %v, %.2000q", err, drift)
		}
	})
}

func TestTheRulesAreReadyBeforeLoopbackIs(t *testing.T) {
	kit.Root(t)
	// A runtime may bring lo up only after the plugins ran.
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			return
		}
		if err := (nft{}).Apply(Default()); err != nil {
			t.Error(err)
		}
		mustLink(t, "lo")
		l, err := net.Listen("tcp6", "[::1]:0")
		if err != nil {
			t.Error(err)
			return
		}
		defer l.Close()
		// The guard address must be usable as a source, which is all it is there for.
		// The kernel finishes a new address in the background.
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("::6")}, Timeout: 2 * time.Second}
		c, err := d.Dial("tcp6", l.Addr().String())
		for deadline := time.Now().Add(10 * time.Second); err != nil && time.Now().Before(deadline); {
			c, err = d.Dial("tcp6", l.Addr().String())
		}
		if err != nil {
			t.Error(err)
			return
		}
		c.Close()
	}()
	<-done
}

func TestAPodWithoutIPv6IsRedirectedToo(t *testing.T) {
	kit.Root(t)
	ns := nstest.New(t)
	ns.Do(func() {
		for _, name := range []string{"all", "default", "lo"} {
			if err := os.WriteFile("/proc/thread-self/net/../../../sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0o644); err != nil {
				if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0o644); err != nil {
					t.Error(err)
				}
			}
		}
		if err := (nft{}).Apply(Default()); err != nil {
			t.Error(err)
		}
		if drift, err := (nft{}).Verify(Default()); err != nil || len(drift) > 0 {
			t.Errorf("verify: %v, %q", err, drift)
		}
	})
}

func TestEnteringANamespaceThatIsGoneIsAnError(t *testing.T) {
	err := InNetNS("/run/netns/gone", func() error { t.Error("ran anyway"); return nil })
	if err == nil || !strings.Contains(err.Error(), "/run/netns/gone") {
		t.Errorf("got %v", err)
	}
	if err := InNetNS(os.Args[0], func() error { t.Error("ran anyway"); return nil }); err == nil {
		t.Error("a file that is no namespace was entered")
	}
}

// The real nft must print our table as we do.
func TestOurTextIsWhatNftPrints(t *testing.T) {
	kit.Root(t)
	kit.Netfilter(t)
	nftPath, err := exec.LookPath("nft")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(nftPath, "--version").Output(); err != nil || !strings.Contains(string(out), "v1.0.") {
		t.Skipf("our text is that of nft 1.0, as Debian 12 has it; this one is %s %v", out, err)
	}
	for name, s := range specs(t) {
		if s.Mode == None {
			continue
		}
		nstest.New(t).Do(func() {
			if err := (nft{}).Apply(s); err != nil {
				t.Error(err)
			}
			out, err := exec.Command(nftPath, "list", "table", "inet", "weft").Output()
			if err != nil {
				t.Error(err)
			}
			text, err := nft{}.Text(s)
			if err != nil {
				t.Error(err)
			}
			if want, _, _ := strings.Cut(text, "# "); string(out) != want {
				t.Errorf("%s: nft prints\n%s\nwe print\n%s", name, out, want)
			}
		})
	}
}
