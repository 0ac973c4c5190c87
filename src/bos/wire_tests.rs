//! Answers as BOS gives them, and as it should not.

use http::{HeaderMap, HeaderValue};
use proptest::prelude::*;

use super::*;
use crate::bos::header_text::to_wire;

fn list(json: &str, prefix: &str, marker: Option<&str>) -> Result<ListPage, Odd> {
    parse::<WireListObjects>(json.as_bytes())?.ok_or("empty")?.into_page(prefix, marker)
}

#[test]
fn a_listing_is_read_with_keys_and_prefixes() {
    let page = list(
        r#" {"name":"bkt","prefix":"d/","delimiter":"/","marker":"","maxKeys":1000,"isTruncated":true,"nextMarker":"d/zz",
        "contents":[{"key":"d/a.bin","lastModified":"2026-01-02T03:04:05Z","eTag":"2e9ec317e197819358fbc43afca7d837",
        "size":8,"storageClass":"STANDARD","owner":{"id":"168bf6fd8fa7","displayName":"u"}}],
        "commonPrefixes":[{"prefix":"d/sub/"}]}"#,
        "d/",
        None,
    )
    .unwrap();
    assert_eq!(page.objects[0].size, 8);
    assert_eq!(page.objects[0].last_modified, 1_767_323_045);
    assert_eq!(page.prefixes, ["d/sub/"]);
    assert_eq!(page.next_marker.as_deref(), Some("d/zz"));
}

#[test]
fn absent_and_null_fields_are_simply_missing() {
    let page = list(r#"{"contents":null}"#, "", None).unwrap();
    assert!(page.objects.is_empty() && page.prefixes.is_empty() && page.next_marker.is_none());
    let page = list(r#"{"contents":[{"key":"k"}],"isTruncated":true}"#, "", Some("a")).unwrap();
    assert_eq!(page.next_marker.as_deref(), Some("k"));
}

#[test]
fn listings_that_would_mislead_are_refused() {
    for (json, marker) in [
        (r#"{"contents":[{"key":"d/k","size":-1}]}"#, None),
        (r#"{"contents":[{"key":"else"}]}"#, None),
        (r#"{"isTruncated":true}"#, None),
        (r#"{"isTruncated":true,"nextMarker":"d/a"}"#, Some("d/a")),
        (r#"{"isTruncated":true,"nextMarker":"d/a"}"#, Some("d/b")),
        (r#"{"isTruncated":true,"commonPrefixes":[{"prefix":"d/s/"}]}"#, None),
        ("<html>", None),
        ("[]", None),
    ] {
        assert!(list(json, "d/", marker).is_err(), "{json}");
    }
}

#[test]
fn parts_of_several_pages_are_joined_in_order() {
    let page = |json: &str, parts: &mut Vec<ListedPart>| {
        parse::<WireListParts>(json.as_bytes()).unwrap().unwrap().append_to(parts)
    };
    let mut parts = Vec::new();
    let first = r#"{"isTruncated":true,"nextPartNumberMarker":3,"parts":[{"partNumber":1,"eTag":"a","size":5},
        {"partNumber":3,"eTag":"b","size":5}]}"#;
    assert_eq!(page(first, &mut parts).unwrap().unwrap().get(), 3);
    assert!(page(first, &mut parts.clone()).is_err(), "a page twice");
    let empty_but_more = r#"{"isTruncated":true,"nextPartNumberMarker":3,"parts":[]}"#;
    assert!(page(empty_but_more, &mut parts).is_err());
    let odd_marker = r#"{"isTruncated":true,"nextPartNumberMarker":9,"parts":[{"partNumber":4,"size":1}]}"#;
    assert!(page(odd_marker, &mut parts.clone()).is_err());
    let last = r#"{"nextPartNumberMarker":4,"parts":[{"partNumber":4,"eTag":"c","size":1}]}"#;
    assert_eq!(page(last, &mut parts).unwrap(), None);
    assert_eq!(parts.len(), 3);
    for bad in [
        r#"{"parts":[{"partNumber":0}]}"#,
        r#"{"parts":[{"partNumber":10001}]}"#,
        r#"{"parts":[{"partNumber":1,"size":-4}]}"#,
    ] {
        assert!(page(bad, &mut Vec::new()).is_err(), "{bad}");
    }
}

fn uploads(json: &str, prefix: &str, marker: Option<&UploadsMarker>) -> Result<UploadsPage, Odd> {
    parse::<WireListUploads>(json.as_bytes())?.ok_or("empty")?.into_page(prefix, marker)
}

/// A page that is cut off after `key`, and after `id` where there is one.
fn cut_off_after(key: &str, id: &str) -> String {
    format!(r#"{{"isTruncated":true,"nextKeyMarker":"{key}","nextUploadIdMarker":"{id}"}}"#)
}

#[test]
fn uploads_page_by_key_alone_where_no_id_is_given() {
    let next = |page: &UploadsPage| page.next.clone().map(|next| (next.key, next.upload_id));
    let json = r#"{"isTruncated":true,"nextKeyMarker":"k","uploads":[{"key":"k","uploadId":"u",
        "initiated":"2026-01-02T03:04:05.123Z"}]}"#;
    let first = uploads(json, "", None).unwrap();
    assert_eq!(next(&first), Some(("k".to_owned(), None)));
    assert_eq!(first.uploads[0].initiated, 1_767_323_045);
    assert!(uploads(json, "", first.next.as_ref()).is_err(), "the same marker again");
    let with_id = json.replace("\"nextKeyMarker\"", "\"nextUploadIdMarker\":\"u\",\"nextKeyMarker\"");
    assert_eq!(
        next(&uploads(&with_id, "", first.next.as_ref()).unwrap()),
        Some(("k".to_owned(), Some("u".to_owned())))
    );
}

#[test]
fn a_list_of_uploads_that_stands_still_goes_back_or_in_circles_is_refused() {
    let mut marker = None;
    // IDs in any order within a key, then by key alone, then another key with an ID that was there before.
    for (key, id) in [("k", "2"), ("k", "3"), ("k", "1"), ("k", ""), ("k/x", "2"), ("l", "")] {
        marker = uploads(&cut_off_after(key, id), "", marker.as_ref()).unwrap().next;
        let refused = |key: &str, id: &str| uploads(&cut_off_after(key, id), "", marker.as_ref()).unwrap_err();
        for (key, id) in [(key, id), ("k", "2"), ("j", "9"), ("j", "")] {
            let why = refused(key, id);
            assert!(why.contains("does not advance") && why.contains(key), "{why}");
        }
    }
    let first = uploads(&cut_off_after("k", "2"), "", None).unwrap().next;
    let second = uploads(&cut_off_after("k", "1"), "", first.as_ref()).unwrap().next;
    let why = uploads(&cut_off_after("k", "2"), "", second.as_ref()).unwrap_err();
    assert!(why.contains("does not advance"), "{why}");
    assert!(uploads(r#"{"isTruncated":true}"#, "", None).is_err(), "nowhere to go on");
    assert!(uploads(&cut_off_after("k", "a\nb"), "", None).is_err(), "an ID that none is");
}

#[test]
fn lists_with_an_empty_key_or_one_outside_the_prefix_are_refused() {
    let upload = |key: &str, rest: &str| format!(r#"{{"uploads":[{{"key":"{key}","uploadId":"u"}}]{rest}}}"#);
    let cut_off = r#","isTruncated":true"#;
    assert_eq!(uploads(&upload("d/k", cut_off), "d/", None).unwrap().next.unwrap().key, "d/k");
    for rest in ["", cut_off, r#","isTruncated":true,"nextKeyMarker":"a""#] {
        assert!(uploads(&upload("", rest), "", None).unwrap_err().contains("empty key"), "{rest}");
        assert!(uploads(&upload("e/k", rest), "d/", None).unwrap_err().contains(r#"names "e/k""#), "{rest}");
        let objects = format!(r#"{{"contents":[{{"key":""}}]{rest}}}"#);
        assert!(list(&objects, "", None).unwrap_err().contains("empty key"), "{rest}");
    }
    assert!(list(r#"{"commonPrefixes":[{"prefix":""}]}"#, "", None).is_err());
    // Keys that are no names of files are the matter of whoever shows them.
    assert_eq!(uploads(&upload("a/../b", ""), "", None).unwrap().uploads[0].key, "a/../b");
}

#[test]
fn batch_delete_answers_in_both_forms_and_forgives_missing_keys() {
    let failures = |json: &str| parse::<WireDeleted>(json.as_bytes()).unwrap().unwrap_or_default().into_failures();
    assert!(failures("").is_empty());
    let errors = r#"{"errors":[{"key":"a","code":"NoSuchKey"},{"key":"b","code":"AccessDenied","message":"m"}]}"#;
    let expected = [("b".to_owned(), "AccessDenied".to_owned(), "m".to_owned())];
    assert_eq!(failures(errors), expected);
    assert_eq!(failures(&format!(r#"{{"deleteResult":{errors}}}"#)), expected);
}

#[test]
fn errors_are_found_in_bodies_of_any_status() {
    let error = WireError::in_body(b"\n\n {\"code\":\"InternalError\",\"message\":\"m\",\"requestId\":\"r\"}").unwrap();
    assert_eq!((error.code.as_str(), error.request_id.as_deref()), ("InternalError", Some("r")));
    for none in ["", "<html>", r#"{"eTag":"x"}"#, r#"{"code":5}"#, "{\"code\":"] {
        assert!(WireError::in_body(none.as_bytes()).is_none(), "{none}");
    }
}

#[test]
fn an_abort_rule_is_found_by_prefix() {
    let json = r#"{"rule":[
        {"id":"1","status":"enabled","resource":["bkt/tmp/*"],"condition":{"time":{"dateGreaterThan":
            "$(lastModified)+P7D"}},"action":{"name":"AbortMultipartUpload"}},
        {"id":"2","status":"disabled","resource":["bkt/*"],"action":{"name":"AbortMultipartUpload"}},
        {"id":"3","status":"enabled","resource":["bkt/*"],"action":{"name":"DeleteObject"}}]}"#;
    let rules: WireLifecycle = parse(json.as_bytes()).unwrap().unwrap();
    assert_eq!(rules.abort_days("bkt", "tmp/a/"), Some(7));
    assert_eq!(rules.abort_days("bkt", ""), Some(7));
    assert_eq!(rules.abort_days("bkt", "data/"), None);
    assert_eq!(days_after_change("2026-01-01T00:00:00Z"), 0);
}

fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
    list.iter()
        .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
        .collect()
}

#[test]
fn only_an_expiry_that_bos_made_up_is_dropped() {
    let date = ("date", "Fri, 02 Jan 2026 03:04:05 GMT");
    let expires = |value: &str| {
        object_meta(&headers(&[("etag", "\"e\""), date, ("expires", value)]), 1, 0).unwrap().headers.expires
    };
    assert_eq!(expires("Mon, 05 Jan 2026 03:04:35 GMT"), None);
    assert_eq!(expires("Tue, 06 Jan 2026 03:04:05 GMT").as_deref(), Some("Tue, 06 Jan 2026 03:04:05 GMT"));
    assert_eq!(expires("never").as_deref(), Some("never"));
}

/// A file name as some Chinese programs send it.
const GBK: &[u8] = b"attachment; filename=\xc4\xbf.txt";

#[test]
fn headers_of_an_object_are_read() {
    let mut map = headers(&[
        ("etag", "\"-184a38c7094bf6ecf27510dc15b816a8\""),
        ("last-modified", "Fri, 02 Jan 2026 03:04:05 GMT"),
        ("x-bce-content-crc32c", "3808858755"),
        ("x-bce-content-crc32", "-1"),
        ("x-bce-content-crc64ecma", "11051210869376104954"),
        ("content-type", "image/png"),
        ("x-bce-meta-a", "100%25 b"),
        ("x-bce-storage-class", "COLD"),
    ]);
    map.insert("x-bce-meta-raw", HeaderValue::from_bytes("目".as_bytes()).unwrap());
    map.insert("content-disposition", HeaderValue::from_bytes(GBK).unwrap());
    let meta = object_meta(&map, 7, 0).unwrap();
    assert_eq!(meta.etag.as_str(), "-184a38c7094bf6ecf27510dc15b816a8");
    assert_eq!(meta.last_modified, 1_767_323_045);
    assert_eq!((meta.crc32c, meta.crc32, meta.crc64), (Some(3808858755), None, Some(11051210869376104954)));
    assert_eq!(meta.headers.metadata["a"], "100%25 b");
    assert_eq!(meta.headers.metadata["raw"], "目");
    assert_eq!(to_wire(meta.headers.content_disposition.as_deref().unwrap()), GBK, "not even UTF-8");
    assert!(object_meta(&HeaderMap::new(), 7, 0).is_err());
}

#[test]
fn bodies_of_requests_have_bos_names() {
    let part = (PartNumber::FIRST, ETag::new("\"x\""));
    assert_eq!(complete_body(&[part]), br#"{"parts":[{"eTag":"x","partNumber":1}]}"#);
    assert_eq!(delete_body(["a\"b"].into_iter()), br#"{"objects":[{"key":"a\"b"}]}"#);
}

proptest! {
    #[test]
    fn no_body_makes_a_parser_panic(body in proptest::collection::vec(any::<u8>(), 0..200), text in ".{0,80}") {
        for body in [body.as_slice(), text.as_bytes()] {
            let _ = parse::<WireListObjects>(body).map(|page| page.map(|page| page.into_page("", Some("m"))));
            let _ = parse::<WireListParts>(body).map(|page| page.map(|page| page.append_to(&mut Vec::new())));
            let _ = parse::<WireListUploads>(body).map(|page| page.map(|page| page.into_page("", None)));
            let _ = parse::<WireDeleted>(body);
            let _ = WireError::in_body(body);
        }
        timestamp_of(&text);
        days_after_change(&text);
    }
}

#[test]
fn lists_longer_than_any_page_are_refused() {
    let entries = |count: usize| {
        let list = vec![r#"{"prefix":"d/"}"#; count].join(",");
        format!(r#"{{"commonPrefixes":[{list}]}}"#)
    };
    assert_eq!(list(&entries(LIST_ENTRIES_MAX), "", None).unwrap().prefixes.len(), LIST_ENTRIES_MAX);
    assert!(list(&entries(LIST_ENTRIES_MAX + 1), "", None).is_err());
}

#[test]
fn etags_and_upload_ids_that_cannot_be_are_refused() {
    let headers = |etag: &str| HeaderMap::from_iter([(http::header::ETAG, HeaderValue::from_str(etag).unwrap())]);
    assert!(object_meta(&headers("\"e\""), 5, 0).is_ok());
    // A condition on no ETag at all would hold for anything.
    for etag in ["", "\"\"", " ", &"e".repeat(300)] {
        assert!(object_meta(&headers(etag), 5, 0).is_err(), "{etag:?}");
        assert!(stored_outcome(&headers(etag), None).is_err(), "{etag:?}");
    }
    assert!(object_meta(&headers("e"), 1 << 63, 0).is_err(), "a size that no file has");
    assert!(list(r#"{"contents":[{"key":"k","eTag":"a\"\r\nb"}]}"#, "", None).is_err());
    for id in ["", "a\nb", &"i".repeat(300)] {
        assert!(upload_id_of(id).is_err(), "{id:?}");
    }
    assert_eq!(upload_id_of("../x").unwrap().as_str(), "../x", "opaque, and the name of nothing here");
}
