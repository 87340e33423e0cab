package e2e

import (
	"cmp"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/e2e/kit"
)

// TestS04KubeInjectGivesTheSamePod: what the CLI writes into a file runs as what the webhook makes, field by field.
func TestS04KubeInjectGivesTheSamePod(t *testing.T) {
	ns := meshed(t)
	byHand := NewNamespace(t, ns.Cluster, "by-hand", restricted)
	app := App{Name: "echo", Annotate: map[string]string{"sidecar.istio.io/proxyCPU": "20m", "sidecar.istio.io/proxyMemory": "64Mi"}}
	ns.Deploy(app)

	meshConfig := filepath.Join(t.TempDir(), "mesh.yaml")
	if err := os.WriteFile(meshConfig, []byte(ns.run("", "get", "configmap", "istio", "-n", "istio-system", "-o", "jsonpath={.data.mesh}")), 0o600); err != nil {
		t.Fatal(err)
	}
	inject := exec.Command(kit.Program(t, "weft"), "kube-inject", "-f", "-", "-n", byHand.Name, "--meshConfigFile", meshConfig)
	// What the webhook knows of the nodes, a file does not: whether their agents hold kubelet's hook.
	if ns.pods("app=echo")[0].Spec.InitContainers[0].StartupProbe == nil {
		inject.Args = append(inject.Args, "--start-gate", "hook")
	}
	inject.Stdin = strings.NewReader(app.YAML())
	var errs strings.Builder
	inject.Stderr = &errs
	out, err := inject.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, errs.String())
	}
	byHand.Apply(string(out))
	byHand.WaitRollout(app.Deployment())
	if got := byHand.readyColumn("echo"); got != "2/2" {
		t.Errorf("READY is %s, want 2/2", got)
	}

	webhook, file := podFields(t, ns.pods("app=echo")[0]), podFields(t, byHand.pods("app=echo")[0])
	for _, key := range sortedKeys(webhook, file) {
		if !reflect.DeepEqual(webhook[key], file[key]) {
			t.Errorf("%s differs:\nby the webhook:   %s\nby kube-inject: %s", key, text(webhook[key]), text(file[key]))
		}
	}
	// It is in the mesh: its peers accept its certificate and it accepts theirs.
	ns.Apply("apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default}\nspec: {mtls: {mode: STRICT}}\n")
	from := "deploy/" + app.Deployment()
	Eventually(t, "mutual TLS between the two", func() error {
		rs, err := ns.Cluster.Call(t.Context(), byHand.Name, from, "-fail", "http://"+ns.host("echo")+"/")
		if err != nil {
			return err
		}
		return hasCaller(rs[0], "spiffe://cluster.local/ns/"+byHand.Name+"/sa/echo")
	})
}

// podFields is the pod's spec, labels and annotations by path, without what is different in every pod and every namespace.
func podFields(t *testing.T, pod corev1.Pod) map[string]any {
	t.Helper()
	spec := pod.Spec
	drop := func(name string) bool { return strings.HasPrefix(name, "kube-api-access-") }
	spec.Volumes = slices.DeleteFunc(spec.Volumes, func(v corev1.Volume) bool { return drop(v.Name) })
	for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			list[i].VolumeMounts = slices.DeleteFunc(list[i].VolumeMounts, func(m corev1.VolumeMount) bool { return drop(m.Name) })
		}
	}
	delete(pod.Labels, "pod-template-hash")
	data, err := json.Marshal(map[string]any{"labels": pod.Labels, "annotations": pod.Annotations, "spec": spec})
	if err != nil {
		t.Fatal(err)
	}
	// A file has not been through the API server, so the probes that are kept in the sidecar's environment lack the API's defaults.
	same := strings.NewReplacer(pod.Namespace, "NAMESPACE", `,\"scheme\":\"HTTP\"`, "", `,\"timeoutSeconds\":1`, "")
	var tree map[string]any
	if err := json.Unmarshal([]byte(same.Replace(string(data))), &tree); err != nil {
		t.Fatal(err)
	}
	flat := map[string]any{}
	flatten(flat, "", tree)
	return flat
}

func flatten(out map[string]any, path string, v any) {
	switch v := v.(type) {
	case map[string]any:
		for k, item := range v {
			flatten(out, path+"."+k, item)
		}
	case []any:
		for i, item := range v {
			name := string(rune('0' + i%10))
			if m, ok := item.(map[string]any); ok {
				if s, ok := m["name"].(string); ok {
					name = s
				}
			}
			flatten(out, path+"["+name+"]", item)
		}
	default:
		out[path] = v
	}
}

func sortedKeys(a, b map[string]any) []string {
	var keys []string
	for _, m := range []map[string]any{a, b} {
		for k := range m {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b string) int { return cmp.Compare(a, b) })
	return slices.Compact(keys)
}

func text(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(data)
}
