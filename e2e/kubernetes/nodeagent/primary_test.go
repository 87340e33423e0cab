package nodeagent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// TestANetworkPluginThatRewritesItsFileDoesNotLoseThePlugin: by a rename, in place, or by removing it first, as network plugins do when they are upgraded.
func TestANetworkPluginThatRewritesItsFileDoesNotLoseThePlugin(t *testing.T) {
	c := open(t)
	ns := c.namespace()
	c.only(map[string]string{"10-net.conflist": c.list("net", 0)})
	c.install(nil)
	c.chained("10-net.conflist")
	path := filepath.Join(c.ConfDir, "10-net.conflist")
	for name, rewrite := range map[string]func(text string){
		"renamed":  func(text string) { c.write("10-net.conflist", text) },
		"in-place": func(text string) { writeInPlace(t, path, text) },
		"removed":  func(text string) { c.remove("10-net.conflist"); writeInPlace(t, path, text) },
	} {
		text := strings.Replace(c.list("net", 0), `"cniVersion"`, `"comment": "`+name+`", "cniVersion"`, 1)
		rewrite(text)
		took := c.chained("10-net.conflist")
		t.Logf("%s: the chain was complete again after %s", name, took.Round(time.Millisecond))
		if now := c.conf()["10-net.conflist"]; !strings.Contains(now, `"comment": "`+name+`"`) {
			t.Errorf("%s: the network plugin's own change is lost: %s", name, now)
		}
		p := c.start(c.app(ns, name))
		c.sees(p, nothing)
		c.never(p)
	}
	if v := c.metric("weft_node_chain_ready"); v != "1" {
		t.Errorf("metric weft_node_chain_ready is %q", v)
	}
}

func writeInPlace(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for half := range 2 { // as a shell's redirection of a slow program
		if _, err := f.WriteString(text[half*len(text)/2 : (half+1)*len(text)/2]); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTheNetworkPluginComesAfterTheAgent: on a new node nothing has a network yet. The first pods of the mesh come together with the network plugin.
func TestTheNetworkPluginComesAfterTheAgent(t *testing.T) {
	c := open(t)
	ns := c.namespace()
	for name := range c.conf() {
		c.remove(name)
	}
	c.deploy(nil)
	var pods []*corev1.Pod
	for _, name := range []string{"a", "b", "c"} {
		pods = append(pods, c.start(withSidecar(c.app(ns, name))))
	}
	c.write("10-net.conflist", c.list("net", 0))
	c.rolledOut()
	c.chained("10-net.conflist")
	for _, p := range pods {
		c.sees(p, taken)
		c.never(p)
	}
}

// TestTwoNetworkPluginsInEitherOrder: the one that the runtime uses has the entry, and the other keeps its bytes.
func TestTwoNetworkPluginsInEitherOrder(t *testing.T) {
	c := open(t)
	ns := c.namespace()
	old, newer := c.list("old", 0), c.list("newer", 1)
	c.only(map[string]string{"10-old.conflist": old})
	c.install(nil)
	c.chained("10-old.conflist")

	c.write("05-newer.conflist", newer) // it sorts first
	c.chained("05-newer.conflist")
	p := c.start(c.app(ns, "on-newer"))
	c.sees(p, nothing)
	c.never(p)

	c.remove("05-newer.conflist")
	c.chained("10-old.conflist")
	c.write("20-newer.conflist", newer) // now it sorts later
	p = c.start(c.app(ns, "on-old"))
	c.sees(p, nothing)
	c.never(p)
	if now := c.conf()["20-newer.conflist"]; now != newer {
		t.Errorf("a network that the runtime does not use was touched: %s", now)
	}
	c.remove("10-old.conflist")
	c.chained("20-newer.conflist")
	p = c.start(c.app(ns, "on-newer-again"))
	c.sees(p, nothing)
	c.never(p)
}
