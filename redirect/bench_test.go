package redirect

import (
	"testing"

	"github.com/weft-mesh/weft/e2e/kit"
	"github.com/weft-mesh/weft/redirect/nstest"
)

func BenchmarkApplyNFTables(b *testing.B) {
	kit.Root(b)
	ns := nstest.New(b)
	s := Default()
	b.ReportAllocs()
	for b.Loop() {
		ns.Do(func() {
			if err := (nft{}).Apply(s); err != nil {
				b.Fatal(err)
			}
		})
	}
}

func BenchmarkVerifyNFTables(b *testing.B) {
	kit.Root(b)
	ns := nstest.New(b)
	s := Default()
	ns.Do(func() {
		if err := (nft{}).Apply(s); err != nil {
			b.Error(err)
		}
	})
	b.ReportAllocs()
	for b.Loop() {
		ns.Do(func() {
			if drift, err := (nft{}).Verify(s); err != nil || len(drift) > 0 {
				b.Error(err, drift)
			}
		})
	}
}
