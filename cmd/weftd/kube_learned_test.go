package main

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-mesh/weft/cmd/weftd/cluster"
)

// The record of what workloads have asked for, on a real API server and with the chart's rights: replicas that write at the same time lose nothing, all hear of it, and
// a ConfigMap that somebody deletes or spoils comes back.
func TestReplicasShareARecordInConfigMaps(t *testing.T) {
	api := newCluster(t)
	const shard = 7
	var mu sync.Mutex
	read := map[string][]byte{}
	var replicas []*cluster.Cluster
	ctx, cancel := context.WithCancel(t.Context())
	var following sync.WaitGroup
	defer following.Wait()
	defer cancel()
	for i := range 2 {
		c, err := cluster.Connect(api.Kubeconfig(api.Token("istio-system", "istiod", "", "")))
		if err != nil {
			t.Fatal(err)
		}
		replicas = append(replicas, c)
		following.Go(func() {
			_ = c.Learned("istio-system").Follow(ctx, func(n int, text []byte) {
				mu.Lock()
				defer mu.Unlock()
				read[fmt.Sprint(i, "/", n)] = text
			})
		})
	}
	has := func(want string) func() bool {
		return func() bool {
			mu.Lock()
			defer mu.Unlock()
			for i := range replicas {
				if got, there := read[fmt.Sprint(i, "/", shard)]; !there || len(got) != len(want) {
					return false
				}
			}
			return true
		}
	}
	eventually(t, "all shards were read, and there is nothing", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(read) == 2*16
	})

	const rounds = 10
	var writers sync.WaitGroup
	for i, c := range replicas {
		store := c.Learned("istio-system") // has not read anything: as stale as can be
		writers.Go(func() {
			for range rounds {
				if err := store.Update(ctx, shard, func(old []byte) []byte { return append(bytes.Clone(old), byte('a'+i)) }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	eventually(t, "both hear of all", has("aaaaaaaaaabbbbbbbbbb"))
	name := fmt.Sprintf("weft-learned-%d", shard)
	object := get[corev1.ConfigMap](api.Client(), "istio-system", name)
	if object == nil || object.Labels["weft.dev/learned"] != "true" {
		t.Fatalf("ConfigMap %s: %+v", name, object)
	}

	if err := api.Client().Delete(ctx, object); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both hear that it is gone", has(""))
	if err := replicas[0].Learned("istio-system").Update(ctx, shard, func([]byte) []byte { return []byte("again") }); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is back", has("again"))

	spoiled := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "weft-learned-3"}, Data: map[string]string{"something": "else"}}
	if err := api.Client().Create(ctx, spoiled); err != nil {
		t.Fatal(err)
	}
	short, stop := context.WithTimeout(ctx, 30*time.Second)
	defer stop()
	if err := replicas[0].Learned("istio-system").Update(short, 3, func(old []byte) []byte {
		if len(old) > 0 {
			t.Errorf("read %q", old)
		}
		return []byte("ours")
	}); err != nil {
		t.Fatal(err)
	}
	if got := get[corev1.ConfigMap](api.Client(), "istio-system", "weft-learned-3"); got.Data["learned.json"] != "ours" {
		t.Errorf("%+v", got.Data)
	}
	if lines := refusals(t, api); len(lines) > 0 {
		t.Errorf("refused: %q", lines)
	}
}
