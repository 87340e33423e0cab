package nodeagent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weft-mesh/weft/e2e/kit"
)

// installed gives a node on which `weft install` has installed the mesh; the node is left as it was found.
func installed(t *testing.T) *cluster {
	t.Helper()
	c := connect(t)
	d, err := c.api.AppsV1().DaemonSets(system).Get(context.Background(), daemonSet, metav1.GetOptions{})
	if err != nil || d.Labels["app.kubernetes.io/managed-by"] != "Helm" {
		t.Skip("needs a cluster on which `weft install` was run: `make e2e` runs this test after that")
	}
	files := c.conf()
	t.Cleanup(func() {
		if t.Failed() {
			c.explain()
		}
		c.selectNodes(nil)
		c.only(files)
		c.rolledOut()
	})
	return c
}

// TestVerifyInstallSaysWhatIsWrongWithANodesChain and says that all is well as soon as the agent has healed it: what an administrator sees when somebody
// overwrites a node's network configuration.
func TestVerifyInstallSaysWhatIsWrongWithANodesChain(t *testing.T) {
	c := installed(t)
	c.verified("")
	name, entry := c.entry()

	// The agent is gone, the network plugin writes its list anew, and somebody tidies the plugins up.
	c.selectNodes(map[string]any{"weft.dev/nowhere": "true"})
	c.within(patience, func() string {
		if c.agentPod() != nil {
			return "the agent still runs"
		}
		return ""
	})
	c.write(name, withoutPlugin(t, entry))
	if err := os.Remove(filepath.Join(c.BinDir, "weft-cni")); err != nil {
		t.Fatal(err)
	}
	c.verified("no node agent")

	// It comes back and heals both.
	c.selectNodes(nil)
	c.rolledOut()
	c.chained(name)
	if _, err := os.Stat(filepath.Join(c.BinDir, "weft-cni")); err != nil {
		t.Error(err)
	}
	c.verified("")

	// What it cannot heal: a list that sorts first, of a version in which nothing can be chained.
	c.write("01-old.conflist", strings.Replace(c.list("old", 0), "1.0.0", "0.2.0", 1))
	c.verified("01-old.conflist")
	c.remove("01-old.conflist")
	c.verified("")
}

// entry is the file that has our entry, and its text.
func (c *cluster) entry() (file, text string) {
	c.t.Helper()
	for file, text := range c.conf() {
		if strings.Contains(text, `"type":"weft-cni"`) {
			return file, text
		}
	}
	c.t.Fatalf("no list has the plugin: %v", c.conf())
	return "", ""
}

// verified waits until `weft verify-install` finds a problem that it describes in these words, or none with "". Its exit status says the same.
func (c *cluster) verified(words string) {
	c.t.Helper()
	weft := kit.Program(c.t, "weft")
	c.within(patience, func() string {
		cmd := exec.Command(weft, "verify-install", "--kubeconfig", filepath.Join(c.Dir, "kubeconfig"), "-o", "json")
		var errs bytes.Buffer
		cmd.Stderr = &errs
		out, err := cmd.Output()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			c.t.Fatal(err)
		}
		var said struct {
			Checks []struct{ Status, Object, Message string }
		}
		if bad := json.Unmarshal(out, &said); bad != nil {
			return fmt.Sprintf("verify-install: %v: %s %s", bad, out, errs.Bytes())
		}
		var problems []string
		found := words == ""
		for _, check := range said.Checks {
			if check.Status == "error" {
				problems = append(problems, check.Object+": "+check.Message)
				found = found || strings.Contains(check.Message, words)
			}
		}
		if !found || (len(problems) > 0) != (words != "") || (err != nil) != (words != "") {
			return fmt.Sprintf("verify-install ends with %v and finds %q, want %q", err, problems, words)
		}
		return ""
	})
}

// selectNodes lets the agent run on nodes with these labels only; nil is all again.
func (c *cluster) selectNodes(labels map[string]any) {
	c.t.Helper()
	if labels == nil {
		labels = map[string]any{"weft.dev/nowhere": nil}
	}
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"template": map[string]any{"spec": map[string]any{"nodeSelector": labels}}}})
	if err == nil {
		_, err = c.api.AppsV1().DaemonSets(system).Patch(context.Background(), daemonSet, types.MergePatchType, patch, metav1.PatchOptions{})
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// withoutPlugin is the list as its network plugin would write it.
func withoutPlugin(t *testing.T, text string) string {
	t.Helper()
	var list map[string]any
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		t.Fatal(err)
	}
	var kept []any
	for _, p := range list["plugins"].([]any) {
		if p.(map[string]any)["type"] != "weft-cni" {
			kept = append(kept, p)
		}
	}
	list["plugins"] = kept
	out, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}
