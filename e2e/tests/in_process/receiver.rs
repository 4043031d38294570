//! Where alerts are posted to.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// A receiver that refuses so many posts, and takes what comes then. Each post is its headers and its body.
pub(crate) struct Receiver {
    pub(crate) url: String,
    pub(crate) posts: Arc<Mutex<Vec<String>>>,
}

impl Receiver {
    pub(crate) async fn refusing(mut refusals: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/alerts", listener.local_addr().unwrap());
        let posts: Arc<Mutex<Vec<String>>> = Arc::default();
        let taken = Arc::clone(&posts);
        #[expect(clippy::disallowed_methods, reason = "it ends with the test's runtime")]
        tokio::spawn(async move {
            'posts: loop {
                let (mut connection, _) = listener.accept().await.unwrap();
                let mut post = String::new();
                let mut buffer = [0; 4096];
                while !post.contains("\r\n\r\n") || !post.ends_with('}') {
                    let read = connection.read(&mut buffer).await.unwrap();
                    if read == 0 {
                        // Whoever posts has given up, and posts again.
                        continue 'posts;
                    }
                    post.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
                }
                let status = if refusals > 0 { "503 Busy" } else { "204 Taken" };
                refusals = refusals.saturating_sub(1);
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                connection.write_all(answer.as_bytes()).await.unwrap();
                taken.lock().unwrap().push(post);
            }
        });
        Self { url, posts }
    }
}
