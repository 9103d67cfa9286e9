use kitfs::*; use std::sync::Arc; use std::time::Duration;
fn main() {
    let rt = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    rt.block_on(async {
        let dir = std::env::args().nth(2).unwrap_or("/tmp/smoke".into());
        let w = layers::Workshop::open(format!("{dir}/cache").as_ref(), format!("{dir}/state").as_ref(), 128<<20, Duration::from_secs(60)).unwrap();
        let r: reference::Reference = std::env::args().nth(1).unwrap().parse().unwrap();
        let o = source::Options { plain_http: false, ca_cert: vec![], registry_config: None, timeout: Duration::from_secs(60) };
        let kit = match resolve::Kit::resolve(&w, &r, &[], resolve::Freshness::Prefer, &o).await { Ok(k)=>k, Err(e)=>{ println!("RESOLVE {}", ledger::chain(&e)); return } };
        let t = std::time::Instant::now();
        let fs = match fs::KitFs::open(Arc::clone(&w), kit, layers::Metadata::Provisional).await { Ok(f)=>f, Err(e)=>{ println!("FS {}", ledger::chain(&e)); return } };
        println!("open {:?}", t.elapsed());
        let t = std::time::Instant::now();
        let mut total = 0;
        for i in fs.tree().inodes() {
            let n = fs.tree().node(i).unwrap();
            if matches!(n.kind, kit::tree::NodeKind::Dir{..}) { continue }
            use sha2::Digest as _; let mut h = sha2::Sha256::new(); let hash = std::env::args().nth(3).is_none();
            let mut at = 0; while at < n.size { match fs.read(i, at..n.size.min(at+(1<<20))).await { Ok(b)=>{ at += b.len() as u64; total += b.len(); if hash {h.update(&b[..])} }, Err(e)=>{ println!("READ {} {}", fs.tree().path(i).unwrap(), ledger::chain(&e)); break } } }
            if n.size < 1<<30 && hash { println!("{} {} {:o} {:?} {}", fs.tree().path(i).unwrap(), n.size, n.mode, fs.state(i), hex::encode(h.finalize())); }
        }
        println!("read {total} in {:?} {:?}", t.elapsed(), w.ledger.counters());
    });
}
