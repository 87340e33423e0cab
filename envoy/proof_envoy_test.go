package envoy

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables"

	"github.com/weft-mesh/weft/redirect"
)

// flush empties one chain of the pod's rules, as a clumsy hand would; the chain itself stays, and with it what the
// kernel remembers of open connections.
func (l *lab) flush(chain string) {
	l.t.Helper()
	l.pod.in(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		chains, err := c.ListChains()
		if err != nil {
			return err
		}
		for _, ch := range chains {
			if ch.Name == chain {
				c.FlushChain(ch)
				return c.Flush()
			}
		}
		return fmt.Errorf("no chain %s among %d", chain, len(chains))
	})
}

// probe asks as kubelet does, over one family.
func (l *lab) probe(pod netip.Addr) string {
	return l.outside.get("http://" + net.JoinHostPort(pod.String(), "15099") + "/healthz/ready")
}

func (e *envoyProcess) probes(state string, l *lab, pod netip.Addr, want string) {
	e.t.Helper()
	started := time.Now()
	e.eventually(fmt.Sprintf("%s: the probe of %s gives %q", state, pod, want), func() error {
		if got := l.probe(pod); got != want {
			return fmt.Errorf("it gives %q", got)
		}
		return nil
	})
	if took := time.Since(started); took > 2*(proofInterval+proofTimeout) { // twice, as the machine may be busy
		e.t.Errorf("%s: it took %v until the probe gave %q", state, took, want)
	}
}

func TestAPodIsReadyOnlyWhileItsTrafficIsRedirectedBothWays(t *testing.T) {
	for _, mode := range []redirect.Mode{redirect.Redirect, redirect.TProxy} {
		t.Run(string(mode), func(t *testing.T) {
			l := newLab(t)
			spec := redirect.Default()
			spec.Mode = mode
			// The mode of mTLS must not matter to kubelet, which has no certificate.
			s := snapshotOf(t, labPolicy("STRICT"))
			p := labProxy(s)
			outputChain := "output"
			if mode == redirect.TProxy {
				w := *p.Workload
				w.Annotations = map[string]string{redirect.Annotation: spec.Encode()}
				p.Workload = &w
				outputChain = "hairpin" // the part of its rules that brings the pod's own connections back
				l.privileged = true
			}
			e := l.start(l.pod, append(inboundSets(s, p), l.secrets("app"))...)
			each := func(state, want string) {
				t.Helper()
				e.probes(state, l, l.pod.v4, want)
				e.probes(state, l, l.pod.v6, want)
			}
			const unproven = "503"
			each("no rules", "refused")
			l.redirect(spec)
			each("all rules", "200")
			if got := l.outside.get("http://" + net.JoinHostPort(l.pod.v4.String(), "15098") + "/"); got != "reset" {
				t.Errorf("from outside, the port of the pod's own check gives %q", got)
			}
			l.flush("inbound")
			each("inbound rules flushed", "refused")
			l.redirect(spec)
			each("restored", "200")
			l.flush(outputChain)
			each("outbound rules flushed", unproven)
			l.redirect(spec)
			each("restored again", "200")

			// Each family has to be redirected, whichever kubelet uses.
			half := spec
			half.IPv6 = false
			l.redirect(half)
			e.probes("IPv6 not redirected", l, l.pod.v4, unproven)

			// A pod that has no IPv6 needs no rules for it.
			p.Addresses = p.Addresses[:1]
			e.update(append(inboundSets(s, p), l.secrets("app"))...)
			e.probes("IPv4 only", l, l.pod.v4, "200")
		})
	}
}
