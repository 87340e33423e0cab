package nodeagent

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weft-mesh/weft/e2e/kit"
)

const daemonSet, agentLabel = "weft-node", "k8s-app=istio-cni-node"

// values are what differs from an ordinary node: the image is this checkout's.
func (c *cluster) values() map[string]any {
	return map[string]any{"cni": map[string]any{"tag": agentTag, "pullPolicy": "Never", "logLevel": "debug"}}
}

// manifests renders the chart as Helm does.
func (c *cluster) manifests(change map[string]any) []byte {
	c.t.Helper()
	chart, err := loader.LoadDir(filepath.Join(kit.RepoRoot(c.t), "deploy", "charts", "cni"))
	if err != nil {
		c.t.Fatal(err)
	}
	values := c.values()
	maps.Copy(values["cni"].(map[string]any), change)
	capabilities := common.DefaultCapabilities.Copy()
	version, err := common.ParseKubeVersion("v" + c.Kubernetes)
	if err != nil {
		c.t.Fatal(err)
	}
	capabilities.KubeVersion = *version
	all, err := util.ToRenderValues(chart, values, common.ReleaseOptions{Name: "istio-cni", Namespace: system, Revision: 1, IsInstall: true}, capabilities)
	if err != nil {
		c.t.Fatal(err)
	}
	rendered, err := engine.Render(chart, all)
	if err != nil {
		c.t.Fatal(err)
	}
	var out bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(rendered)) {
		if strings.HasSuffix(name, ".yaml") && strings.TrimSpace(rendered[name]) != "" {
			fmt.Fprintf(&out, "---\n%s\n", rendered[name])
		}
	}
	return out.Bytes()
}

// deploy gives the chart to the cluster and does not wait.
func (c *cluster) deploy(change map[string]any) {
	c.t.Helper()
	once.chart = c.manifests(change)
	c.apply(once.chart)
}

// install deploys the agent and waits until it says that new pods are redirected.
func (c *cluster) install(change map[string]any) time.Duration {
	c.t.Helper()
	start := time.Now()
	c.deploy(change)
	c.rolledOut()
	return time.Since(start)
}

// rolledOut waits until every pod of the DaemonSet is of its present template and ready.
func (c *cluster) rolledOut() {
	c.t.Helper()
	c.within(patience, func() string {
		d, err := c.api.AppsV1().DaemonSets(system).Get(context.Background(), daemonSet, metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		s := d.Status
		if s.ObservedGeneration < d.Generation || s.DesiredNumberScheduled == 0 || s.UpdatedNumberScheduled != s.DesiredNumberScheduled || s.NumberReady != s.DesiredNumberScheduled {
			_, body := c.get("/readyz")
			return fmt.Sprintf("DaemonSet %s: %+v; its /readyz: %s", daemonSet, s, body)
		}
		return ""
	})
}

// agentPod is the agent's newest pod, nil without any.
func (c *cluster) agentPod() *corev1.Pod {
	list, err := c.api.CoreV1().Pods(system).List(context.Background(), metav1.ListOptions{LabelSelector: agentLabel})
	if err != nil || len(list.Items) == 0 {
		return nil
	}
	p := slices.MaxFunc(list.Items, func(a, b corev1.Pod) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) })
	return &p
}

// stop takes the agent away without undoing anything, as a drained DaemonSet would.
func (c *cluster) stop() {
	c.t.Helper()
	c.deleteAgent()
	c.within(patience, func() string {
		if p := c.agentPod(); p != nil {
			return "the agent's pod is still there"
		}
		return ""
	})
}

func (c *cluster) deleteAgent() {
	c.t.Helper()
	err := c.api.AppsV1().DaemonSets(system).Delete(context.Background(), daemonSet, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		c.t.Fatal(err)
	}
}

// uninstall does what `weft uninstall` does to the node: the DaemonSet's own pod undoes what it did, says so, and goes.
func (c *cluster) uninstall() {
	c.t.Helper()
	args := append([]string{"uninstall", "--stay"}, c.agentArgs()...)
	c.patchAgent(func(d *appsv1.DaemonSet) { d.Spec.Template.Spec.Containers[0].Args = args })
	c.rolledOut()
	c.stop()
}

// agentArgs are those of the agent when it serves, nil when there is no DaemonSet.
func (c *cluster) agentArgs() []string {
	c.t.Helper()
	d, err := c.api.AppsV1().DaemonSets(system).Get(context.Background(), daemonSet, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return slices.DeleteFunc(d.Spec.Template.Spec.Containers[0].Args, func(a string) bool { return a == "uninstall" || a == "--stay" })
}

// reset undoes the agent's work after a test, also that of one which the test stopped. The agent's own program does it on the node, without the
// seconds in which its pods are replaced and end.
func (c *cluster) reset() {
	c.t.Helper()
	args := c.agentArgs()
	c.deleteAgent()
	now := int64(0)
	if err := c.api.CoreV1().Pods(system).DeleteCollection(context.Background(), metav1.DeleteOptions{GracePeriodSeconds: &now}, metav1.ListOptions{LabelSelector: agentLabel}); err != nil {
		c.t.Fatal(err)
	}
	c.within(patience, func() string { // the API server forgets it before it has ended
		conn, err := net.Dial("unix", filepath.Join(c.Root, "run/weft/agent.sock"))
		if err == nil {
			conn.Close()
			return "the agent still answers"
		}
		if p := c.agentPod(); p != nil {
			return "the agent's pod is still there"
		}
		return ""
	})
	if _, err := os.Stat(filepath.Join(c.Root, "var/lib/weft/node/undo.json")); err == nil {
		if args == nil { // a test that stopped it: how it was called is in the chart
			c.deploy(nil)
			args = c.agentArgs()
			c.stop()
		}
		c.command(filepath.Join(c.Dir, "enter"), append([]string{kit.Program(c.t, "weft-node"), "uninstall"}, args...)...)
	}
	if c.tainted() {
		c.patchNode(c.api, c.Node, taints())
	}
}

// patchAgent changes the DaemonSet as `kubectl edit` would.
func (c *cluster) patchAgent(change func(*appsv1.DaemonSet)) {
	c.t.Helper()
	ctx := context.Background()
	d, err := c.api.AppsV1().DaemonSets(system).Get(ctx, daemonSet, metav1.GetOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	change(d)
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"template": d.Spec.Template}})
	if err == nil {
		_, err = c.api.AppsV1().DaemonSets(system).Patch(ctx, daemonSet, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	}
	if err != nil {
		c.t.Fatal(err)
	}
}
