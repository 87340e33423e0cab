package node

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const (
	flannel = "{\n  \"name\": \"cbr0\",\n  \"cniVersion\": \"1.0.0\",\n  \"plugins\": [\n    {\n      \"type\": \"bridge\",  \"mtu\": 1450\n    },\n    {\"type\": \"portmap\", \"capabilities\": {\"portMappings\": true}}\n  ]\n}\n"
	calico  = `{"name":"k8s-pod-network","cniVersion":"0.3.1","plugins":[{"type":"calico","mtu":0},{"type":"bandwidth"}]}`
	single  = "{ \"cniVersion\": \"0.4.0\", \"name\": \"kindnet\",\n  \"type\": \"ptp\", \"ipam\": {\"type\":\"host-local\"} }\n"
	broken  = `{"name": "half`
)

// machine is a node's directories.
type machine struct {
	*Installation
	t testing.TB
}

func newMachine(t testing.TB) machine {
	t.Helper()
	dir := t.TempDir()
	m := machine{&Installation{
		Binary: filepath.Join(dir, "image", "weft-cni"), BinDir: filepath.Join(dir, "bin"), ConfDir: filepath.Join(dir, "net.d"), StateDir: filepath.Join(dir, "state"),
		Plugin: Entry{ExcludeNamespaces: []string{"kube-system"}, AgentSocket: "/run/weft/agent.sock"},
	}, t}
	for _, d := range []string{filepath.Dir(m.Binary), m.ConfDir} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(m.Binary, []byte("version 1"), 0o700); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m machine) write(name, text string) {
	m.t.Helper()
	path := m.conf(name)
	if err := os.WriteFile(path+".new", []byte(text), 0o640); err != nil {
		m.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		m.t.Fatal(err)
	}
}

// old makes a file look as if nobody were writing it.
func (m machine) old(name string) {
	m.t.Helper()
	if err := os.Chtimes(m.conf(name), time.Time{}, time.Now().Add(-time.Hour)); err != nil {
		m.t.Fatal(err)
	}
}

func (m machine) read(name string) string {
	m.t.Helper()
	b, err := os.ReadFile(m.conf(name))
	if err != nil {
		m.t.Fatal(err)
	}
	return string(b)
}

// files are the names and contents in a directory.
func files(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		out[strings.TrimPrefix(path, dir+"/")] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (m machine) install(wantFile string) Report {
	m.t.Helper()
	r, err := m.Install()
	if err != nil {
		m.t.Fatalf("install: %v", err)
	}
	if r.Problem != "" || r.File != wantFile {
		m.t.Fatalf("report %+v, want a complete chain in %s\n%v", r, wantFile, files(m.t, m.ConfDir))
	}
	again, err := m.Install()
	if err != nil || len(again.Changed) > 0 || again.Problem != "" {
		m.t.Fatalf("a second look changed %q, %+v, %v", again.Changed, again, err)
	}
	return r
}

// chainOf are the plugins of a list, each as compact JSON.
func chainOf(t testing.TB, text string) []string {
	t.Helper()
	var l struct {
		Plugins []map[string]any `json:"plugins"`
	}
	if err := json.Unmarshal([]byte(text), &l); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	var out []string
	for _, p := range l.Plugins {
		out = append(out, fmt.Sprint(p["type"]))
	}
	return out
}

func TestInstallAddsAnEntryAndUninstallLeavesEveryByteAsItWas(t *testing.T) {
	for name, before := range map[string]map[string]string{
		"list":                      {"10-flannel.conflist": flannel},
		"list on one line":          {"10-calico.conflist": calico, "calico-kubeconfig": "apiVersion: v1"},
		"single plugin":             {"10-kindnet.conf": single},
		"single plugin, json":       {"05-x.json": single, "87-podman.conflist": flannel},
		"single plugin beside list": {"10-kindnet.conf": single, "10-kindnet.conflist": calico},
		"first is broken":           {"05-half.conflist": broken, "10-flannel.conflist": flannel},
		"two lists":                 {"10-calico.conflist": calico, "20-flannel.conflist": flannel},
	} {
		for _, own := range []string{"", "00-weft.conflist"} {
			t.Run(strings.TrimSpace(name+" "+own), func(t *testing.T) {
				m := newMachine(t)
				m.OwnList = own
				for name, text := range before {
					m.write(name, text)
					m.old(name)
				}
				r, err := m.Install()
				if err != nil || r.Problem != "" {
					t.Fatalf("%+v, %v", r, err)
				}
				m.install(r.File)
				if text := m.read(r.File); chainOf(t, text)[len(chainOf(t, text))-1] != PluginType {
					t.Errorf("weft-cni is not last in %s", text)
				}
				if own != "" && (r.File != own || len(files(t, m.ConfDir)) != len(before)+1) {
					t.Errorf("with a list of our own the others are left alone, but there are %v", files(t, m.ConfDir))
				}
				if err := m.Uninstall(); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(before, files(t, m.ConfDir)); diff != "" {
					t.Errorf("network configurations after uninstall: %s", diff)
				}
				if left := files(t, m.BinDir); len(left) > 0 {
					t.Errorf("binaries after uninstall: %v", left)
				}
				if r, err := m.Install(); err != nil || len(r.Changed) > 0 || r.Problem == "" {
					t.Errorf("an agent that still runs installs again: %+v %v", r, err)
				}
				if err := m.Start(); err != nil {
					t.Fatal(err)
				}
				if r, err := m.Install(); err != nil || r.Problem != "" {
					t.Errorf("a new agent does not install: %+v %v", r, err)
				}
			})
		}
	}
}

func TestTheEntryIsRightLastAndThereOnce(t *testing.T) {
	m := newMachine(t)
	entry := string(m.Plugin.JSON())
	for name, text := range map[string]string{
		"not last":      `{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"ptp"}, ` + entry + `, {"type":"portmap"}]}`,
		"first":         `{"name":"n","cniVersion":"1.0.0","plugins":[` + entry + `, {"type":"ptp"}, {"type":"portmap"}]}`,
		"twice":         `{"name":"n","cniVersion":"1.0.0","plugins":[` + entry + "," + entry + `, {"type":"ptp"}, {"type":"portmap"},` + entry + `]}`,
		"other content": `{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"ptp"},{"type":"portmap"} , {"type":"weft-cni","excludeNamespaces":["shop"]}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			m.write("10-n.conflist", text)
			if r := m.install("10-n.conflist"); !cmp.Equal(r.Changed, []string{"entry"}) && !cmp.Equal(r.Changed, []string{"binary", "entry"}) {
				t.Errorf("changed %q", r.Changed)
			}
			have := m.read("10-n.conflist")
			if got := chainOf(t, have); !cmp.Equal(got, []string{"ptp", "portmap", PluginType}) || strings.Count(have, entry) != 1 {
				t.Errorf("chain is %q: %s", got, have)
			}
			info, err := os.Stat(m.conf("10-n.conflist"))
			if err != nil || info.Mode().Perm() != 0o640 {
				t.Errorf("mode %v %v, want the owner's", info.Mode(), err)
			}
		})
	}
}

func TestFilesAreChosenInTheRuntimesOrder(t *testing.T) {
	for name, c := range map[string]struct {
		files []string
		want  string // "" for none
	}{
		"lexical":                        {[]string{"20-a.conflist", "10-b.conflist"}, "10-b.conflist"},
		"endings count":                  {[]string{"00-a.yaml", "01-b.conflist.bak", "02-c", "99-d.conflist"}, "99-d.conflist"},
		"capitals sort first":            {[]string{"a.conflist", "Z.conflist"}, "Z.conflist"},
		"only what a runtime would read": {[]string{".weft-node-1.tmp", "x.conflist.weft-saved"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			for _, f := range c.files {
				m.write(f, flannel)
			}
			r, err := m.Install()
			if err != nil || r.File != c.want || (r.Problem == "") != (c.want != "") {
				t.Errorf("%+v %v, want %q", r, err, c.want)
			}
		})
	}
}

func TestWhatCannotBeChainedIsSaidAndLeftAlone(t *testing.T) {
	for name, c := range map[string]struct{ file, text, want string }{
		"too old":            {"10-a.conflist", `{"name":"n","cniVersion":"0.2.0","plugins":[{"type":"ptp"}]}`, "cniVersion"},
		"no version":         {"10-a.conflist", `{"name":"n","plugins":[{"type":"ptp"}]}`, "cniVersion"},
		"old single plugin":  {"10-a.conf", `{"name":"n","cniVersion":"0.1.0","type":"ptp"}`, "cniVersion"},
		"plugins twice":      {"10-a.conflist", `{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"x"}],"plugins":[{"type":"ptp"}]}`, "twice"},
		"only our own entry": {"10-a.conflist", `{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"weft-cni","backend":"x"}]}`, "no plugin beside"},
		"nothing valid":      {"10-a.conflist", broken, "no valid network configuration"},
		"a list in a .conf":  {"10-a.conf", flannel, "no valid network configuration"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			m.write(c.file, c.text)
			m.old(c.file)
			r, err := m.Install()
			if !strings.Contains(r.Problem, c.want) {
				t.Errorf("problem %q (%v), want %q in it", r.Problem, err, c.want)
			}
			if got := files(t, m.ConfDir); !cmp.Equal(got, map[string]string{c.file: c.text}) {
				t.Errorf("changed: %v", got)
			}
		})
	}
}

func TestACniVersionIsKept(t *testing.T) {
	for _, v := range []string{`"cniVersion":"0.3.1"`, `"cniVersion":"1.1.0"`, `"cniVersion":"0.4.0","cniVersions":["0.4.0","1.0.0"]`} {
		m := newMachine(t)
		m.write("10-a.conflist", `{"name":"n",`+v+`,"plugins":[{"type":"ptp"}]}`)
		m.install("10-a.conflist")
		if !strings.Contains(m.read("10-a.conflist"), v) {
			t.Errorf("%s became %s", v, m.read("10-a.conflist"))
		}
	}
}

func TestANewAgentBringsItsBinaryAndRemovesWhatACrashLeft(t *testing.T) {
	m := newMachine(t)
	m.write("10-flannel.conflist", flannel)
	m.install("10-flannel.conflist")
	for _, dir := range []string{m.ConfDir, m.BinDir} {
		if err := os.WriteFile(filepath.Join(dir, ".weft-node-77.tmp"), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(m.Binary, []byte("version 2"), 0o700); err != nil {
		t.Fatal(err)
	}
	next := machine{&Installation{Binary: m.Binary, BinDir: m.BinDir, ConfDir: m.ConfDir, StateDir: m.StateDir, Plugin: m.Plugin}, t}
	if err := next.Start(); err != nil {
		t.Fatal(err)
	}
	if r := next.install("10-flannel.conflist"); !cmp.Equal(r.Changed, []string{"binary"}) {
		t.Errorf("changed %q, want the binary alone", r.Changed)
	}
	if got := files(t, m.BinDir); !cmp.Equal(got, map[string]string{PluginType: "version 2"}) {
		t.Errorf("binaries: %v", got)
	}
	if info, err := os.Stat(filepath.Join(m.BinDir, PluginType)); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("mode %v %v", info.Mode(), err)
	}
	if got := len(files(t, m.ConfDir)); got != 1 {
		t.Errorf("%d files among the network configurations: %v", got, files(t, m.ConfDir))
	}
	if err := os.WriteFile(filepath.Join(m.BinDir, PluginType), []byte("overwritten"), 0o755); err != nil {
		t.Fatal(err)
	}
	next.install("10-flannel.conflist")
	if got := files(t, m.BinDir)[PluginType]; got != "version 2" {
		t.Errorf("an overwritten binary stays %q", got)
	}
}

func TestAConvertedConfigurationFollowsItsOwner(t *testing.T) {
	m := newMachine(t)
	m.write("10-kindnet.conf", single)
	m.install("10-kindnet.conflist")

	newer := strings.Replace(single, "ptp", "bridge", 1)
	m.write("10-kindnet.conf", newer)
	m.install("10-kindnet.conflist")
	if got := chainOf(t, m.read("10-kindnet.conflist")); !cmp.Equal(got, []string{"bridge", PluginType}) {
		t.Errorf("chain %q after its owner rewrote the configuration", got)
	}
	t.Run("its owner now writes a list", func(t *testing.T) {
		m.write("10-kindnet.conflist", flannel)
		m.install("10-kindnet.conflist")
		if got := chainOf(t, m.read("10-kindnet.conflist")); !cmp.Equal(got, []string{"bridge", "portmap", PluginType}) {
			t.Errorf("chain %q", got)
		}
		if err := m.Uninstall(); err != nil {
			t.Fatal(err)
		}
		if got := files(t, m.ConfDir); !cmp.Equal(got, map[string]string{"10-kindnet.conflist": flannel}) {
			t.Errorf("after uninstall: %v", got)
		}
	})
}

func TestAListOfOurOwnFollowsTheNetworkAndGoesWithIt(t *testing.T) {
	m := newMachine(t)
	m.OwnList = "00-weft.conflist"
	m.write("10-calico.conflist", calico)
	m.install("00-weft.conflist")
	m.write("10-calico.conflist", strings.Replace(calico, `"mtu":0`, `"mtu":1400`, 1))
	m.install("00-weft.conflist")
	if !strings.Contains(m.read("00-weft.conflist"), "1400") {
		t.Error("the copy did not follow")
	}
	if err := os.Remove(m.conf("10-calico.conflist")); err != nil {
		t.Fatal(err)
	}
	if r, err := m.Install(); err != nil || r.Problem == "" || len(files(t, m.ConfDir)) != 0 {
		t.Errorf("%+v %v %v: the copy of a network that is gone stays", r, err, files(t, m.ConfDir))
	}
	m.write("00-aws.conflist", calico)
	if r, err := m.Install(); err != nil || !strings.Contains(r.Problem, "lower name") {
		t.Errorf("%+v %v", r, err)
	}
}

func TestTheAgentMayBeToldToDoItTheOtherWay(t *testing.T) {
	for _, before := range []map[string]string{{"10-calico.conflist": calico}, {"10-kindnet.conf": single}} {
		m := newMachine(t)
		for name, text := range before {
			m.write(name, text)
		}
		if _, err := m.Install(); err != nil {
			t.Fatal(err)
		}
		m.OwnList = "00-weft.conflist"
		if r, err := m.Install(); err != nil || r.Problem != "" {
			t.Fatalf("%+v %v", r, err)
		}
		m.install("00-weft.conflist")
		if got := files(t, m.ConfDir); len(got) != 2 {
			t.Errorf("%v, want the network's file as it was and ours", got)
		}
		m.OwnList = ""
		r, err := m.Install()
		if err != nil || r.Problem != "" {
			t.Fatalf("%+v %v", r, err)
		}
		m.install(r.File)
		if err := m.Uninstall(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, files(t, m.ConfDir)); diff != "" {
			t.Error(diff)
		}
	}
}

func TestMultusIsNotChainedButItsNetworkIs(t *testing.T) {
	m := newMachine(t)
	m.write("10-flannel.conflist", flannel)
	m.install("10-flannel.conflist")
	m.write("00-multus.conf", `{"cniVersion":"0.3.1","name":"multus-cni-network","type":"multus-shim","logLevel":"verbose"}`)
	m.install("10-flannel.conflist")

	multus := func(delegate string) string {
		return `{"cniVersion":"0.3.1","name":"multus-cni-network","type":"multus","delegates":[` + delegate + `]}`
	}
	m.write("00-multus.conf", multus(flannel))
	if r, err := m.Install(); err != nil || !strings.Contains(r.Problem, "Multus must generate its file again") {
		t.Errorf("%+v %v: Multus delegates to a copy without our entry", r, err)
	}
	m.write("00-multus.conf", multus(m.read("10-flannel.conflist")))
	m.install("10-flannel.conflist")
	m.OwnList = "!weft.conflist"
	if r, err := m.Install(); err != nil || !strings.Contains(r.Problem, "Multus") {
		t.Errorf("%+v %v: a list of our own would hide Multus", r, err)
	}
}

func TestASymbolicLinkStaysOne(t *testing.T) {
	m := newMachine(t)
	m.write("real", flannel)
	if err := os.Symlink("real", m.conf("10-flannel.conflist")); err != nil {
		t.Fatal(err)
	}
	m.install("10-flannel.conflist")
	if got, err := os.Readlink(m.conf("10-flannel.conflist")); err != nil || got != "real" {
		t.Errorf("%q %v", got, err)
	}
	if err := m.Uninstall(); err != nil || m.read("real") != flannel {
		t.Errorf("%v: %s", err, m.read("real"))
	}
}

func TestUninstallLeavesWhatBecameSomebodyElses(t *testing.T) {
	m := newMachine(t)
	m.write("10-calico.conflist", calico)
	m.install("10-calico.conflist")
	if err := os.WriteFile(filepath.Join(m.BinDir, PluginType), []byte("somebody else's"), 0o755); err != nil {
		t.Fatal(err)
	}
	m.write("10-calico.conflist", flannel)
	if err := m.Uninstall(); err != nil {
		t.Fatal(err)
	}
	if m.read("10-calico.conflist") != flannel || files(t, m.BinDir)[PluginType] != "somebody else's" {
		t.Errorf("%v %v", files(t, m.ConfDir), files(t, m.BinDir))
	}
}

func TestPluginsThatADirectoryAddsAreNoted(t *testing.T) {
	m := newMachine(t)
	m.write("10-flannel.conflist", flannel)
	if err := os.Mkdir(m.conf("cbr0"), 0o755); err != nil {
		t.Fatal(err)
	}
	m.write("cbr0/10-tuning.conf", `{"type":"tuning"}`)
	if r := m.install("10-flannel.conflist"); len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "tuning") {
		t.Errorf("notes %q", r.Notes)
	}
}

func TestNoOtherNetworkIsTouchedWhileTheFirstIsBeingWritten(t *testing.T) {
	m := newMachine(t)
	m.write("87-podman.conflist", flannel)
	m.write("10-calico.conflist", calico[:40])
	if r, err := m.Install(); err != nil || !strings.Contains(r.Problem, "being written") || m.read("87-podman.conflist") != flannel {
		t.Errorf("%+v %v %s", r, err, m.read("87-podman.conflist"))
	}
	m.write("10-calico.conflist", calico)
	m.install("10-calico.conflist")
	if m.read("87-podman.conflist") != flannel {
		t.Error("the other network was touched")
	}
}
