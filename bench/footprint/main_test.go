package main

import (
	"testing"
	"time"
)

const summary = `{"node": {"nodeName": "n1"}, "pods": [
{"podRef": {"name": "istiod-1", "namespace": "istio-system", "uid": "1"}, "containers": [{"name": "discovery",
  "cpu": {"time": "2026-11-21T13:00:00Z", "usageNanoCores": 5, "usageCoreNanoSeconds": 2000000000},
  "memory": {"time": "2026-11-21T13:00:00Z", "workingSetBytes": 60000000, "rssBytes": 50000000}}]},
{"podRef": {"name": "istio-ingressgateway-1", "namespace": "istio-system"}, "containers": [{"name": "istio-proxy",
  "cpu": {"time": "2026-11-21T13:00:00Z", "usageCoreNanoSeconds": 1}, "memory": {"rssBytes": 1}}]},
{"podRef": {"name": "starting", "namespace": "istio-system"}, "containers": [{"name": "x"}]},
{"podRef": {"name": "web", "namespace": "default"}, "containers": [{"name": "app", "cpu": {"usageCoreNanoSeconds": 1}, "memory": {"rssBytes": 1}}]}]}`

func TestFiguresAreKubelets(t *testing.T) {
	before := map[string]usage{}
	if err := containers([]byte(summary), before); err != nil {
		t.Fatal(err)
	}
	u, ok := before["istiod-1"]
	if len(before) != 1 || !ok || u.cpu != 2*time.Second || u.resident != 50_000_000 {
		t.Fatalf("got %+v", before)
	}
	after := map[string]usage{
		"istiod-1": {at: u.at.Add(20 * time.Second), cpu: 3 * time.Second, resident: 70_000_000},
		"istiod-2": {},
	}
	got := difference("idle", before, after)
	want := row{State: "idle", Pod: "istiod-1", Seconds: 20, CPUSeconds: 1, Percent: 5, ResidentMB: 70}
	if len(got) != 1 || got[0] != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
