package node

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"

	"github.com/weft-mesh/weft/cni"
	"github.com/weft-mesh/weft/e2e/kit"
	"github.com/weft-mesh/weft/redirect"
	"github.com/weft-mesh/weft/redirect/nstest"
)

// runtimeOf makes pods as a container runtime does: it takes the first valid configuration of the moment and runs its chain, real plugins in real
// network namespaces, with the pods' annotations. kubelet tries again when that fails.
type runtimeOf struct {
	machine
	*libcni.CNIConfig
	host *nstest.NS
}

func (r runtimeOf) add(s Sandbox) error {
	found, err := scan(r.ConfDir)
	if err != nil {
		return err
	}
	c := choose(found, nil)
	if c.first == nil {
		return fmt.Errorf("no network")
	}
	l, err := libcni.NetworkConfFromBytes(c.first.list)
	if err != nil {
		return err
	}
	args := &libcni.RuntimeConf{ContainerID: s.ID, NetNS: s.NetNS, IfName: "eth0",
		Args:           [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", s.Namespace}, {"K8S_POD_NAME", s.Name}, {"K8S_POD_UID", s.UID}},
		CapabilityArgs: map[string]any{cni.CapabilityAnnotations: map[string]string{redirect.Annotation: s.Redirect}}}
	r.host.Do(func() { _, err = r.AddNetworkList(context.Background(), l, args) })
	return err
}

func TestPodsThatStartWhileThePrimaryRewritesItsFileAreAllRedirected(t *testing.T) {
	kit.Root(t)
	const count = 30
	m := newMachine(t)
	m.Binary = kit.Program(t, PluginType)
	m.Plugin.CNIStateDir = filepath.Join(t.TempDir(), "cni")
	ipam := filepath.Join(t.TempDir(), "ipam")
	rewrite := func(mtu int) {
		b, err := json.Marshal(map[string]any{"cniVersion": "1.0.0", "name": "pods", "plugins": []any{map[string]any{"type": "ptp", "mtu": 1400 + mtu%100,
			"ipam": map[string]any{"type": "host-local", "dataDir": ipam, "ranges": []any{[]any{map[string]string{"subnet": "10.68.0.0/24"}}}}}}})
		if err != nil {
			t.Error(err)
		}
		m.write("10-pods.conflist", string(b))
	}
	rewrite(0)
	m.keep()
	m.awaitChain()
	h := newHealer(t)
	h.run()

	stop, writers := make(chan struct{}), sync.WaitGroup{}
	writers.Go(func() {
		for i := 1; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(15 * time.Millisecond):
				rewrite(i)
			}
		}
	})
	r := runtimeOf{m, libcni.NewCNIConfigWithCacheDir([]string{m.BinDir, kit.CNIPlugins(t)}, t.TempDir(), nil), nstest.New(t)}
	var list []Sandbox
	var took []time.Duration
	for i := range count {
		s, ns := pod(t, fmt.Sprintf("p%d", i), redirect.Default())
		if err := r.add(s); err != nil {
			t.Fatalf("ADD of %s: %v", s.Name, err)
		}
		list = append(list, s)
		h.runtime.set(nil, list...)
		notify(h.look)
		took = append(took, kit.Within(t, 20*time.Second, func() string {
			if d := differs(t, ns, redirect.Default()); len(d) > 0 {
				return d[0]
			}
			return ""
		}))
	}
	close(stop)
	writers.Wait()
	m.awaitChain()
	slices.Sort(took)
	repaired := h.repairs()
	for _, r := range repaired {
		if r.Err != nil || r.Reason != ReasonStart {
			t.Errorf("%+v", r)
		}
	}
	t.Logf("%d pods, %d of them made without the plugin and repaired; redirected after ADD: median %s, longest %s", count, len(repaired), took[count/2], took[count-1])
}
