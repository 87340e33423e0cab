// Package mesh measures the mesh model at the size that Istio's users call large: 1000 services with 5 endpoints each.
//
//	go test ./bench/mesh -run - -bench . -benchmem
package mesh
